// Pixels as Python's Pillow makes them: 8 bits of grey, padded squares, shrinking with anti-aliasing; and PNG files, which browsers would change.
// A picture is {width, height, data}: data is a Uint8Array, row by row.
'use strict'

class Fault extends Error {}   // Something that a reader is told in words

const picture = (width, height, data = new Uint8Array(width*height)) => ({width, height, data})

// ---- grey ----

// ITU-R 601 in whole numbers, as Pillow's convert('L')
const luma = (r, g, b) => (r*19595 + g*38470 + b*7471 + 0x8000) >> 16

// RGBA bytes -> grey, written at `at`; alpha is left out, as Pillow does
function greyFromRgba(rgba, grey, at = 0) {
  for (let i = 0; i < rgba.length; i += 4) grey[at++] = luma(rgba[i], rgba[i + 1], rgba[i + 2])
}

// How coloured a picture is: the share of its sampled pixels whose channels differ by more than LEAST_COLOUR (`using.cheap_checks`)
const LEAST_COLOUR = 40
class Colours {
  constructor(width, height) { Object.assign(this, {step: Math.max(1, Math.floor(Math.max(width, height)/256)), seen: 0, coloured: 0}) }
  see(r, g, b) { this.seen++; if (Math.max(r, g, b) - Math.min(r, g, b) > LEAST_COLOUR) this.coloured++ }
  get share() { return this.seen ? this.coloured/this.seen : 0 }
}

// 16-bit samples -> 8 bits, going by the bulk of them (`data.images.grey_from_16_bit`)
function greyFrom16(samples, bulk = .995) {
  const counts = new Float64Array(17), grey = new Uint8Array(samples.length)
  for (let i = 0; i < samples.length; i++) counts[32 - Math.clz32(samples[i])]++
  let below = 0, bits = 16
  for (let b = 0; b <= 16; b++) {
    below += counts[b]
    if ([8, 10, 12, 14, 16].includes(b) && below/samples.length >= bulk) { bits = b; break }
  }
  const most = 2**bits - 1, shift = bits - 8
  for (let i = 0; i < samples.length; i++) grey[i] = Math.min(samples[i], most) >> shift
  return grey
}

// Grey -> the pixels of a canvas
function canvasPixels({width, height, data}) {
  const pixels = new ImageData(width, height), rgba = new Uint32Array(pixels.data.buffer)
  for (let i = 0; i < rgba.length; i++) rgba[i] = 0xff000000 | data[i]*0x010101
  return pixels
}

// Turn a picture as its Exif note says (1 to 8)
function turned({width, height, data}, orientation) {
  if (!(orientation >= 2 && orientation <= 8)) return picture(width, height, data)
  const lies = orientation >= 5, out = picture(lies ? height : width, lies ? width : height)
  const from = {2: (x, y) => [width - 1 - x, y], 3: (x, y) => [width - 1 - x, height - 1 - y], 4: (x, y) => [x, height - 1 - y], 5: (x, y) => [y, x],
    6: (x, y) => [y, height - 1 - x], 7: (x, y) => [width - 1 - y, height - 1 - x], 8: (x, y) => [width - 1 - y, x]}[orientation]
  for (let y = 0, i = 0; y < out.height; y++) for (let x = 0; x < out.width; x++, i++) {
    const [sx, sy] = from(x, y)
    out.data[i] = data[sy*width + sx]
  }
  return out
}

// ---- squares (`data.squares`) ----

const REDUCING_GAP = 2.2

function padToSquare(image) {
  const {width, height} = image
  if (width === height) return image
  const side = Math.max(width, height), left = (side - width) >> 1, upper = (side - height) >> 1, square = picture(side, side)
  for (let y = 0; y < height; y++) square.data.set(image.data.subarray(y*width, (y + 1)*width), (y + upper)*side + left)
  return square
}

// A part of a picture, black where it reaches beyond, as Pillow's crop
function cropped(image, [left, upper, right, lower]) {
  const out = picture(right - left, lower - upper)
  const x0 = Math.max(left, 0), x1 = Math.min(right, image.width)
  for (let y = Math.max(upper, 0); y < Math.min(lower, image.height) && x0 < x1; y++)
    out.data.set(image.data.subarray(y*image.width + x0, y*image.width + x1), (y - upper)*out.width + x0 - left)
  return out
}

// Whole blocks of pixels averaged, as Pillow's reduce; blocks at the right and lower edge are smaller
function reduced({width, height, data}, fx, fy) {
  const out = picture(Math.ceil(width/fx), Math.ceil(height/fy)), sums = new Uint32Array(out.width)
  for (let oy = 0; oy < out.height; oy++) {
    const y0 = oy*fy, rows = Math.min(fy, height - y0)
    sums.fill(0)
    for (let y = y0; y < y0 + rows; y++) {
      let i = y*width
      for (let ox = 0; ox < out.width; ox++) {
        let sum = 0
        for (const end = Math.min(i + fx, (y + 1)*width); i < end; i++) sum += data[i]
        sums[ox] += sum
      }
    }
    for (let ox = 0; ox < out.width; ox++) {
      const n = rows*Math.min(fx, width - ox*fx), times = Math.trunc(Math.fround(2**32/(256*n)))
      out.data[oy*out.width + ox] = Math.floor((sums[ox] + (n >> 1))*times/2**24)
    }
  }
  return out
}

// Weights of Pillow's bilinear filter from `start`..`end` of `length` pixels to `size`: [first pixel, weights] for each result; Pillow keeps the ends as float32
function filterWeights(length, start, end, size) {
  start = Math.fround(start)
  const scale = Math.fround(Math.fround(end) - start)/size, wide = Math.max(scale, 1)
  return Array.from({length: size}, (_, i) => {
    const centre = start + (i + .5)*scale
    const first = Math.max(Math.trunc(centre - wide + .5), 0), last = Math.min(Math.trunc(centre + wide + .5), length)
    const weights = new Float64Array(last - first)
    let total = 0
    for (let x = 0; x < weights.length; x++) total += weights[x] = Math.max(0, 1 - Math.abs((x + first - centre + .5)/wide))
    if (total) for (let x = 0; x < weights.length; x++) weights[x] *= 1/total
    return [first, weights]
  })
}

const BITS = 22   // of the fixed-point weights that Pillow uses for 8-bit pixels

const fixed = exact => Int32Array.from(exact, k => Math.trunc(.5 + k*2**BITS))

// Each row of `data` filtered to `weights.length` pixels
function filteredRows(data, width, height, weights, out, whole) {
  const size = weights.length, all = weights.map(([first, exact]) => [first, whole ? fixed(exact) : exact])
  for (let y = 0; y < height; y++) for (let i = 0; i < size; i++) {
    const [first, w] = all[i]
    let sum = whole ? 2**(BITS - 1) : 0
    for (let x = 0, p = y*width + first; x < w.length; x++, p++) sum += data[p]*w[x]
    out[y*size + i] = whole ? Math.min(Math.floor(sum/2**BITS), 255) : sum
  }
}

// Each column of `data` filtered to `weights.length` pixels
function filteredColumns(data, width, weights, out, whole) {
  const sums = new Float64Array(width)
  weights.forEach(([first, exact], i) => {
    const w = whole ? fixed(exact) : exact
    sums.fill(whole ? 2**(BITS - 1) : 0)
    for (let y = 0; y < w.length; y++) for (let x = 0, p = (first + y)*width; x < width; x++, p++) sums[x] += data[p]*w[y]
    for (let x = 0, p = i*width; x < width; x++, p++) out[p] = whole ? Math.min(Math.floor(sums[x]/2**BITS), 255) : sums[x]
  })
}

// Pillow's resize by the bilinear filter; `box` is the part that is shrunk. Bytes give bytes, Float32Array gives Float32Array
function resized({width, height, data}, outWidth, outHeight, box = [0, 0, width, height]) {
  const whole = data instanceof Uint8Array, make = whole ? Uint8Array : Float32Array
  let now = data, nowWidth = width
  if (outWidth !== width || box[0] || box[2] !== width) {
    now = new make(outWidth*height)
    filteredRows(data, width, height, filterWeights(width, box[0], box[2], outWidth), now, whole)
    nowWidth = outWidth
  }
  if (outHeight !== height || box[1] || box[3] !== height) {
    const out = new make(nowWidth*outHeight)
    filteredColumns(now, nowWidth, filterWeights(height, box[1], box[3], outHeight), out, whole)
    now = out
  }
  return picture(outWidth, outHeight, now)
}

// Pillow's resize with reducing_gap: blocks first, the rest by the filter
function shrunk(image, outWidth, outHeight) {
  const fx = Math.trunc(image.width/outWidth/REDUCING_GAP) || 1, fy = Math.trunc(image.height/outHeight/REDUCING_GAP) || 1
  if (fx === 1 && fy === 1) return resized(image, outWidth, outHeight)
  return resized(reduced(image, fx, fy), outWidth, outHeight, [0, 0, image.width/fx, image.height/fy])
}

function greySquare(image, size) {
  const square = padToSquare(image)
  return square.width === size ? square : shrunk(square, size, size)
}

// Python's round: halves to the even number
function rounded(x) {
  const low = Math.floor(x), part = x - low
  return part < .5 || (part === .5 && low % 2 === 0) ? low : low + 1
}

// ---- PNG ----

const PNG = [137, 80, 78, 71, 13, 10, 26, 10]
const CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}   // of each colour type
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]]   // Adam7: x, y, steps

// Chunks of a PNG: {header, palette, exif, parts}
function pngChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), found = {parts: []}
  for (let at = 8; at + 8 <= bytes.length;) {
    const length = view.getUint32(at), kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8)), body = bytes.subarray(at + 8, at + 8 + length)
    if (kind === 'IHDR') found.header = {width: view.getUint32(at + 8), height: view.getUint32(at + 12), depth: body[8], colour: body[9], interlaced: body[12]}
    else if (kind === 'PLTE') found.palette = body
    else if (kind === 'eXIf') found.exif = body
    else if (kind === 'IDAT') found.parts.push(body)
    else if (kind === 'IEND') break
    at += length + 12
  }
  return found
}

// Orientation in an Exif block; 1 if it says none
function exifOrientation(exif) {
  if (!exif || exif.length < 14) return 1
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength), little = exif[0] === 0x49, start = view.getUint32(4, little)
  if (start + 2 > exif.length) return 1
  for (let i = 0, at = start + 2; i < view.getUint16(start, little) && at + 12 <= exif.length; i++, at += 12)
    if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little)
  return 1
}

// Decompressed bytes of a zlib stream in parts, `size` of them
async function inflated(parts, size) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream('deflate')).getReader(), out = new Uint8Array(size)
  let at = 0
  try {
    for (let {done, value} = await reader.read(); !done && at < size; {done, value} = await reader.read()) {
      out.set(value.subarray(0, size - at), at)
      at += value.length
    }
  } catch (error) { if (at < size) throw new Fault('Cannot be read as an image; it is cut off or damaged. Copy or export it again.') }   // what follows the last pixel does not matter
  reader.cancel().catch(() => {})
  if (at < size) throw new Fault('Cannot be read as an image; it is cut off. Copy or export it again.')
  return out
}

// Undo the filter of one row in place; `before` is the row above, or null
function unfilter(kind, row, before, step) {
  const n = row.length
  if (kind === 1) for (let i = step; i < n; i++) row[i] += row[i - step]
  else if (kind === 2 && before) for (let i = 0; i < n; i++) row[i] += before[i]
  else if (kind === 3) for (let i = 0; i < n; i++) row[i] += ((i < step ? 0 : row[i - step]) + (before ? before[i] : 0)) >> 1
  else if (kind === 4) for (let i = 0; i < n; i++) {
    const a = i < step ? 0 : row[i - step], b = before ? before[i] : 0, c = before && i >= step ? before[i - step] : 0
    const pa = Math.abs(b - c), pb = Math.abs(a - c), pc = Math.abs(a + b - 2*c)
    row[i] += pa <= pb && pa <= pc ? a : pb <= pc ? b : c
  }
  else if (kind > 4) throw new Fault('Cannot be read as an image; it is damaged. Copy or export it again.')
}

// A sample of less than 16 bits
const sample = (row, i, depth) => depth === 8 ? row[i] : (row[(i*depth) >> 3] >> (8 - depth - (i*depth & 7))) & (2**depth - 1)

// One row of samples -> grey values (16 bits for 16-bit grey, else 8)
function pngRow(row, n, {depth, colour}, palette) {
  const out = depth === 16 && colour === 0 ? new Uint16Array(n) : new Uint8Array(n), channels = CHANNELS[colour], bytes = depth >> 3
  if (depth < 8) {
    const times = colour === 3 ? 1 : 255/(2**depth - 1)
    for (let i = 0; i < n; i++) out[i] = sample(row, i, depth)*times
  }
  else if (depth === 16 && colour === 0) for (let i = 0; i < n; i++) out[i] = row[2*i] << 8 | row[2*i + 1]
  else if (colour === 2 || colour === 6) for (let i = 0, p = 0; i < n; i++, p += channels*bytes) out[i] = luma(row[p], row[p + bytes], row[p + 2*bytes])
  else for (let i = 0, p = 0; i < n; i++, p += channels*bytes) out[i] = row[p]
  if (colour === 3) for (let i = 0; i < n; i++) out[i] = palette[out[i]]
  return out
}

async function decodePng(bytes, mostPixels) {
  const {header, palette, exif, parts} = pngChunks(bytes)
  if (!header || !CHANNELS[header.colour] || !parts.length) throw new Fault('Cannot be read as an image; it is no complete PNG file. Copy or export it again.')
  const {width, height, depth, colour, interlaced} = header, grey = Array.from({length: 256}, (_, i) => palette ? luma(...[0, 1, 2].map(c => palette[3*i + c] || 0)) : i)
  refuseSize(width, height, mostPixels)
  const deep = depth === 16 && colour === 0, samples = deep ? new Uint16Array(width*height) : new Uint8Array(width*height)
  const passes = (interlaced ? PASSES : [[0, 0, 1, 1]]).map(([x, y, dx, dy]) => ({x, y, dx, dy, w: Math.ceil((width - x)/dx), h: Math.ceil((height - y)/dy)})).filter(p => p.w > 0 && p.h > 0)
  const bitsOfPixel = CHANNELS[colour]*depth, step = Math.max(1, bitsOfPixel >> 3), stride = w => Math.ceil(w*bitsOfPixel/8)
  const raw = await inflated(parts, passes.reduce((sum, p) => sum + p.h*(1 + stride(p.w)), 0))
  const colours = new Colours(width, height), {step: every} = colours, wide = bitsOfPixel >> 3, byte = depth >> 3, entry = (i, c) => palette?.[3*i + c] ?? 0
  const hue = (row, i) => colour === 3 ? colours.see(...[0, 1, 2].map(c => entry(sample(row, i, depth), c))) : colours.see(row[i*wide], row[i*wide + byte], row[i*wide + 2*byte])
  let at = 0
  for (const {x, y, dx, dy, w, h} of passes) {
    const length = stride(w)
    let before = null
    for (let j = 0; j < h; j++, at += length + 1) {
      const row = raw.subarray(at + 1, at + 1 + length)
      unfilter(raw[at], row, before, step)
      before = row
      if ([2, 3, 6].includes(colour) && (y + j*dy) % every === 0) for (let i = 0; i < w; i++) if ((x + i*dx) % every === 0) hue(row, i)
      const values = pngRow(row, w, header, grey), start = (y + j*dy)*width + x
      if (dx === 1) samples.set(values, start)
      else for (let i = 0; i < w; i++) samples[start + i*dx] = values[i]
    }
  }
  return {...turned(picture(width, height, deep ? greyFrom16(samples) : samples), exifOrientation(exif)), colour: colours.share}
}

function refuseSize(width, height, mostPixels) {
  if (!(width > 0 && height > 0)) throw new Fault('Has no pixels.')
  if (width*height > mostPixels) throw new Fault(`Its header claims ${Math.round(width*height/1e6).toLocaleString('en')} megapixels, and at most ${Math.round(mostPixels/1e6)} are read (chest X-rays have up to about 30). It was not decoded. Export it smaller.`)
}

// ---- what the browser decodes: JPEG, and BMP, GIF, WebP ----

const STRIP = 512   // Rows that are read at a time: a canvas of a whole film would be too large for some browsers

async function decodeByBrowser(blob, mostPixels) {
  let bitmap
  try { bitmap = await createImageBitmap(blob, {colorSpaceConversion: 'none', premultiplyAlpha: 'none'}) }
  catch (error) { throw new Fault('Is no picture that can be read: it is damaged, or of a kind that this browser does not know. PNG, JPEG or DICOM are expected.') }
  try {
    const {width, height} = bitmap
    refuseSize(width, height, mostPixels)
    const out = picture(width, height), colours = new Colours(width, height), canvas = new OffscreenCanvas(width, Math.min(STRIP, height)), context = canvas.getContext('2d', {willReadFrequently: true})
    for (let y = 0; y < height; y += STRIP) {
      const rows = Math.min(STRIP, height - y)
      context.clearRect(0, 0, width, rows)
      context.drawImage(bitmap, 0, y, width, rows, 0, 0, width, rows)
      const rgba = context.getImageData(0, 0, width, rows).data
      greyFromRgba(rgba, out.data, y*width)
      for (let j = 0; j < rows; j++) if ((y + j) % colours.step === 0) for (let x = 0, i = 4*j*width; x < width; x += colours.step, i += 4*colours.step) colours.see(rgba[i], rgba[i + 1], rgba[i + 2])
    }
    return {...out, colour: colours.share}
  } finally { bitmap.close() }
}

if (typeof module !== 'undefined') module.exports = {Fault, picture, luma, greyFrom16, turned, padToSquare, cropped, reduced, resized, shrunk, greySquare, rounded, refuseSize, decodePng}
