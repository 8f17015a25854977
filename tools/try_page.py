"""The page behind "Try it" of the site: python tools/try_page.py _docs/try [runs/demo]

Puts the model of the embedded data set into a page that runs it in the reader's browser. Without such a model, or without the packages
that write it, the page says how to make one, and the site is built all the same.
"""
import sys
from pathlib import Path

from chestnb.core.errors import UserError
from chestnb.core.files import write_text

ABSENT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark"><title>No model here</title></head>
<body style="font: 1rem/1.5 system-ui, sans-serif; margin: 1rem"><p>This copy of the site was built without a model. To have one: <code>make demo page</code> trains it on the embedded synthetic X-rays and shows it at
<code>http://localhost:8000</code>; <code>make demo docs</code> builds the site with it. Not for clinical use.</p></body></html>
"""


def main(to, run='runs/demo'):
    "Write the page, or one that says how to make it."
    try:
        from chestnb.using.browser import build_page
        print(build_page(run, to))
    except (UserError, ImportError) as error:
        print(f'No model for "Try it": {error}')
        write_text(Path(to)/'index.html', ABSENT)


if __name__ == '__main__': main(*sys.argv[1:])
