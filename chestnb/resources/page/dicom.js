// A radiograph from a DICOM file as it is meant to be seen: chestnb's data.dicom and data.dicom_header, with dicom-parser as the reader.
// Word lists and patterns come from the library when the page is built (`words`), so that they are written once.
'use strict'

if (typeof module !== 'undefined') Object.assign(globalThis, require('./pixels.js'))

const TAGS = {Modality: 'x00080060', SOPClassUID: 'x00080016', SeriesDescription: 'x0008103e', PresentationIntentType: 'x00080068', BodyPartExamined: 'x00180015', ViewPosition: 'x00185101',
  ViewCodeSequence: 'x00540220', CodeMeaning: 'x00080104', SamplesPerPixel: 'x00280002', PhotometricInterpretation: 'x00280004', NumberOfFrames: 'x00280008', Rows: 'x00280010', Columns: 'x00280011',
  BitsAllocated: 'x00280100', BitsStored: 'x00280101', PixelRepresentation: 'x00280103', PixelPaddingValue: 'x00280120', PixelPaddingRangeLimit: 'x00280121', WindowCenter: 'x00281050',
  WindowWidth: 'x00281051', RescaleIntercept: 'x00281052', RescaleSlope: 'x00281053', VOILUTFunction: 'x00281056', ModalityLUTSequence: 'x00283000', VOILUTSequence: 'x00283010',
  LUTDescriptor: 'x00283002', LUTData: 'x00283006', PixelData: 'x7fe00010'}
const BINARY = new Set(['SamplesPerPixel', 'Rows', 'Columns', 'BitsAllocated', 'BitsStored', 'PixelRepresentation', 'PixelPaddingValue', 'PixelPaddingRangeLimit', 'LUTDescriptor'])   // whole numbers of 16 bits
const SYNTAXES = {'1.2.840.10008.1.2': 'Implicit VR Little Endian', '1.2.840.10008.1.2.1': 'Explicit VR Little Endian', '1.2.840.10008.1.2.2': 'Explicit VR Big Endian'}
const COMPRESSED = {'1.2.840.10008.1.2.1.99': 'Deflated Explicit VR Little Endian', '1.2.840.10008.1.2.4.50': 'JPEG Baseline', '1.2.840.10008.1.2.4.51': 'JPEG Extended',
  '1.2.840.10008.1.2.4.57': 'JPEG Lossless', '1.2.840.10008.1.2.4.70': 'JPEG Lossless', '1.2.840.10008.1.2.4.80': 'JPEG-LS Lossless', '1.2.840.10008.1.2.4.81': 'JPEG-LS Lossy',
  '1.2.840.10008.1.2.4.90': 'JPEG 2000 Lossless', '1.2.840.10008.1.2.4.91': 'JPEG 2000', '1.2.840.10008.1.2.4.201': 'High-Throughput JPEG 2000 Lossless',
  '1.2.840.10008.1.2.4.202': 'High-Throughput JPEG 2000 Lossless', '1.2.840.10008.1.2.4.203': 'High-Throughput JPEG 2000', '1.2.840.10008.1.2.5': 'RLE Lossless'}

// ---- the header ----

function headerText(dicom, name) {
  const element = dicom.elements[TAGS[name]]
  if (!element) return ''
  if (BINARY.has(name)) return headerNumbers(dicom, name).join('\\')
  return (dicom.string(TAGS[name]) || '').replace(/\0/g, '').trim()
}

const numberFrom = text => /^\s*[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?\s*$/i.test(text) ? Number(text.replace(',', '.')) : NaN

function headerNumbers(dicom, name) {
  const element = dicom.elements[TAGS[name]]
  if (!element) return []
  if (!BINARY.has(name) || ['DS', 'IS', 'LO', 'SH'].includes(element.vr)) return headerString(dicom, name).map(numberFrom)
  const signed = element.vr === 'SS' || !element.vr && name.startsWith('PixelPadding') && dicom.uint16(TAGS.PixelRepresentation) === 1
  return Array.from({length: element.length >> 1}, (_, i) => signed ? dicom.int16(TAGS[name], i) : dicom.uint16(TAGS[name], i))
}

function headerString(dicom, name) {
  const text = (dicom.string(TAGS[name]) || '').replace(/\0/g, '').trim()
  return text ? text.split('\\') : []
}

const firstUsable = (numbers, usual, zero = true) => numbers.find(n => Number.isFinite(n) && (zero || n)) ?? usual

// 'PA', 'AP', '' if a text says neither, or the text itself if it names another view
function frontalView(text, words) {
  const said = text.toUpperCase().replace(/ANTERO[-_ ]?POSTERIOR/g, 'AP').replace(/POSTERO[-_ ]?ANTERIOR/g, 'PA')
  const parts = said.replace(/\b([AP])[.-]([AP])\b/g, '$1$2').replace(/[^A-Z]+/g, ' ').split(' ').filter(Boolean)
  if (new RegExp(words.other_view).test(parts.join(' '))) return text
  const found = ['PA', 'AP'].filter(view => parts.includes(view))
  if (found.length === 1) return found[0]
  return found.length || parts.every(part => words.no_direction.includes(part)) ? '' : text
}

function seriesView(text) {
  const frontal = new Set(text.toUpperCase().match(/\b(PA|AP|FRONTAL)\b/g)), lateral = /\bLAT(ERAL)?\b/.test(text.toUpperCase())
  if (lateral && !frontal.size) return text
  const [only] = frontal
  return frontal.size === 1 && only !== 'FRONTAL' && !lateral ? only : ''
}

function viewPosition(dicom, words) {
  const code = dicom.elements[TAGS.ViewCodeSequence]?.items?.[0]?.dataSet
  return frontalView(headerText(dicom, 'ViewPosition'), words) || (code ? frontalView(headerText(code, 'CodeMeaning'), words) : '') || seriesView(headerText(dicom, 'SeriesDescription'))
}

function bodyPart(dicom, words) {
  const said = headerText(dicom, 'BodyPartExamined').toUpperCase().normalize('NFKD').replace(/\p{M}/gu, '')
  if (new RegExp(words.chest).test(said) && !/SPINE|RACHIS|COLUMN|WIRBEL/.test(said)) return 'chest'
  return new RegExp(words.other_parts).test(said) ? 'other' : 'unknown'
}

function isRadiograph(dicom, words) {
  const modality = headerText(dicom, 'Modality').toUpperCase(), kind = headerText(dicom, 'SOPClassUID')
  if (words.modalities.includes(modality)) return true
  return words.vague.includes(modality) && (words.radiographs.includes(kind) || modality !== 'OT' && (!kind || `${kind}.`.startsWith(`${words.captures}.`)))
}

// What is odd in a header and was shown all the same, in sentences (`data.dicom.dicom_notes`)
function dicomNotes(dicom, words) {
  const modality = headerText(dicom, 'Modality'), part = headerText(dicom, 'BodyPartExamined'), slope = headerText(dicom, 'RescaleSlope'), shape = headerText(dicom, 'VOILUTFunction')
  const windows = ['WindowCenter', 'WindowWidth'].map(name => headerText(dicom, name).replace(/\.0$/, '')), table = usableTable(dicom, 'VOILUTSequence'), used = usableWindow(dicom)
  return [
    words.vague.includes(modality.toUpperCase()) && modality && `Its modality '${modality}' is taken for a radiograph.`,
    part && bodyPart(dicom, words) === 'unknown' && `Its body part '${part}' is not known here, and taken for a chest.`,
    slope && !firstUsable(headerNumbers(dicom, 'RescaleSlope'), 0) && `Its rescale slope '${slope}' cannot be used, and is left out.`,
    !table && used && shape && !SHAPES[shape.toUpperCase()] && `Window ${used.join('/')} (LINEAR; its function '${shape.toUpperCase()}' is not in the standard)${windows[0].includes('\\') ? `, the first of ${windows[0].split('\\').length}` : ''}.`,
    !table && !used && windows.some(Boolean) && `Darkest to brightest of the bulk of the pixels; the window ${windows.join('/')} cannot be used.`].filter(Boolean)
}

// Why a DICOM file is no frontal chest radiograph, as far as its header tells; '' if it may be one
function whyRefused(dicom, words) {
  const said = name => headerText(dicom, name).toUpperCase(), view = viewPosition(dicom, words), frames = headerNumbers(dicom, 'NumberOfFrames')[0] ?? 1
  if (!['Rows', 'Columns'].every(name => (headerNumbers(dicom, name)[0] ?? 0) >= 1)) return 'it holds no image'
  if (!isRadiograph(dicom, words)) return `its modality is '${said('Modality')}', expected ${words.modalities.join(' or ')}`
  if (bodyPart(dicom, words) === 'other') return `it shows '${said('BodyPartExamined')}', expected CHEST`
  if (!['', 'PA', 'AP'].includes(view)) return `its view position is '${view}'; only frontal views, PA and AP, can be used`
  if (frames > 1) return `it has ${frames} frames, expected a single one`
  if (!['MONOCHROME1', 'MONOCHROME2'].includes(said('PhotometricInterpretation'))) return `its colours are '${said('PhotometricInterpretation')}', expected grey (MONOCHROME1 or MONOCHROME2)`
  if (said('PresentationIntentType') === 'FOR PROCESSING') return "it holds raw detector data ('FOR PROCESSING'); the version 'FOR PRESENTATION' is needed"
  return ''
}

// ---- from stored values to grey ----
// A radiograph stores at most 16 bits, so all that follows is computed once for each value that occurs, not once for each pixel.

// A lookup table of the header: {first, entries, white}; undefined if there is none that can be used
function usableTable(dicom, name) {
  for (const item of dicom.elements[TAGS[name]]?.items ?? []) {
    const [n, first, bits] = headerNumbers(item.dataSet, 'LUTDescriptor'), data = item.dataSet.elements[TAGS.LUTData]
    if (bits === undefined || !data?.length) continue
    const count = n & 0xffff || 65536, bytes = item.dataSet.byteArray.subarray(data.dataOffset, data.dataOffset + data.length)
    const narrow = bytes.length === count, entries = Array.from({length: Math.min(count, narrow ? bytes.length : bytes.length >> 1)}, (_, i) => narrow ? bytes[i] : item.dataSet.uint16(TAGS.LUTData, i))
    return {first, entries, white: Math.max(2**bits - 1, ...chunkMaxima(entries))}
  }
}

function* chunkMaxima(numbers) { for (let i = 0; i < numbers.length; i += 1024) yield Math.max(...numbers.slice(i, i + 1024)) }

function lookUp(values, {first, entries}) {
  const start = first > 32767 && Math.min(...chunkMinima(values)) < 0 ? first - 65536 : first
  return values.map(v => entries[Math.min(Math.max(rounded(v) - start, 0), entries.length - 1)])
}

function* chunkMinima(numbers) { for (let i = 0; i < numbers.length; i += 1024) yield Math.min(...numbers.slice(i, i + 1024)) }

function modalityValues(dicom, stored) {
  const table = usableTable(dicom, 'ModalityLUTSequence')
  if (table) return lookUp(stored, table)
  const slope = firstUsable(headerNumbers(dicom, 'RescaleSlope'), 1, false), intercept = firstUsable(headerNumbers(dicom, 'RescaleIntercept'), 0)
  return stored.map(v => v*slope + intercept)
}

const SHAPES = {
  LINEAR: (x, c, w) => w > 1 ? (x - (c - .5))/(w - 1) + .5 : x > c - .5 ? 1 : 0,
  LINEAR_EXACT: (x, c, w) => (x - c)/w + .5,
  SIGMOID: (x, c, w) => 1/(1 + Math.exp(Math.min(Math.max(-4*(x - c)/w, -700), 700)))}
const clip01 = x => Math.min(Math.max(x, 0), 1)

// Darkest and brightest value, leaving out the few pixels that lie far outside of the others; `sorted`: [value, count] pairs, rising
function bulkRange(sorted) {
  const n = sorted.reduce((sum, [, count]) => sum + count, 0)
  if (!n) return [0, 0]
  const at = index => { let below = 0; for (const [value, count] of sorted) { below += count; if (below > index) return value } }
  const low = at(Math.floor((n - 1)*.01)), high = at(Math.ceil((n - 1)*.99)), width = high - low || Infinity
  const inside = sorted.filter(([value]) => value >= low - width && value <= high + width)
  return [inside[0][0], inside[inside.length - 1][0]]
}

// Values as a share of the range that the header asks for; undefined if it asks for none
function shareOfInterest(dicom, values) {
  const table = usableTable(dicom, 'VOILUTSequence')
  if (table) return lookUp(values, table).map(entry => clip01(entry/Math.max(table.white, 1)))
  const window = usableWindow(dicom)
  return window && values.map(v => clip01(SHAPES[windowShape(dicom)](v, ...window)))
}

function windowShape(dicom) { const said = headerText(dicom, 'VOILUTFunction').toUpperCase(); return SHAPES[said] ? said : 'LINEAR' }

// The first window of the header that can be used: [centre, width]
function usableWindow(dicom) {
  const centres = headerNumbers(dicom, 'WindowCenter'), widths = headerNumbers(dicom, 'WindowWidth'), least = windowShape(dicom) === 'LINEAR' ? 1 : 1e-9
  const i = centres.findIndex((c, i) => Number.isFinite(c) && widths[i] >= least && Number.isFinite(widths[i]))
  return i < 0 ? undefined : [centres[i], widths[i]]
}

// Grey of each stored value that occurs: `data.dicom.dicom_grey` with counts instead of pixels
function greyOfValues(dicom, stored, counts, padding) {
  const values = modalityValues(dicom, stored), kept = stored.map((_, i) => i).filter(i => !padding[i])
  const sorted = kept.map(i => [values[i], counts[i]]).sort((a, b) => a[0] - b[0]), [darkest, brightest] = bulkRange(sorted)
  let share = shareOfInterest(dicom, values)
  if (share) {
    const bulk = new Set(kept.filter(i => values[i] >= darkest && values[i] <= brightest).map(i => rounded(255*share[i])))
    if (darkest < brightest && bulk.size === 1 && (bulk.has(0) || bulk.has(255))) share = undefined   // all black or all white, and should not be
  }
  share ??= values.map(v => clip01((v - darkest)/Math.max(brightest - darkest, 1e-9)))
  const dark = headerText(dicom, 'PhotometricInterpretation').toUpperCase() === 'MONOCHROME1'
  return share.map((s, i) => padding[i] ? 0 : dark ? 255 - rounded(255*s) : rounded(255*s))
}

// Value or range of the header that means "no part of the image", with the sign of the pixels; none: an empty range
function paddingRange(dicom, bits, signed) {
  const [value] = headerNumbers(dicom, 'PixelPaddingValue'), [limit] = headerNumbers(dicom, 'PixelPaddingRangeLimit')
  const stored = n => { if (n === undefined || !(n >= -(2**(bits - 1)) && n < 2**bits)) return []; const u = (Math.trunc(n) + 2**bits) % 2**bits; return [signed && u >= 2**(bits - 1) ? u - 2**bits : u] }
  const ends = [...stored(value), ...(value === undefined ? [] : stored(limit))]
  return stored(value).length ? [Math.min(...ends), Math.max(...ends)] : [1, 0]
}

// Pixels as stored: {bits, signed, raw (Uint8Array or Uint16Array with unused bits cleared)}
function storedPixels(dicom) {
  const usual = (name, other) => { const n = headerNumbers(dicom, name)[0]; return Number.isFinite(n) ? n : other }
  const bits = usual('BitsAllocated', 16), n = usual('Rows')*usual('Columns'), element = dicom.elements[TAGS.PixelData]
  let used = usual('BitsStored', bits)
  if (!(used >= 1 && used <= bits)) used = bits
  if (bits !== 8 && bits !== 16) throw new Fault(`Its pixels have ${bits} bits, and this page reads 8 and 16.`)
  if (!element) throw new Fault('Cannot be used: it holds no pixels. Export it again with its image.')
  if (element.length < n*bits/8) throw new Fault(`Cannot be read as DICOM; it is truncated or malformed (${element.length.toLocaleString('en')} bytes of pixels, expected ${(n*bits/8).toLocaleString('en')}). Copy or export this file again.`)
  const bytes = dicom.byteArray.slice(element.dataOffset, element.dataOffset + n*bits/8), raw = bits === 8 ? bytes : new Uint16Array(bytes.buffer)
  const big = dicom.byteArrayParser.readUint16 === dicomParser.bigEndianByteArrayParser?.readUint16, mask = 2**used - 1
  if (bits === 16 && big) for (let i = 0; i < n; i++) raw[i] = raw[i] >> 8 | raw[i] << 8
  if (used < bits) for (let i = 0; i < n; i++) raw[i] &= mask
  return {raw, used, bits, signed: usual('PixelRepresentation', 0) === 1}
}

function dicomGrey(dicom) {
  const {raw, used, bits, signed} = storedPixels(dicom), all = new Float64Array(2**bits)
  for (let i = 0; i < raw.length; i++) all[raw[i]]++
  const present = [], table = new Uint8Array(2**bits)
  for (let v = 0; v < all.length; v++) if (all[v]) present.push(v)
  const stored = present.map(v => signed && v >= 2**(used - 1) ? v - 2**used : v), [low, high] = paddingRange(dicom, bits, signed)
  const grey = greyOfValues(dicom, stored, present.map(v => all[v]), stored.map(v => v >= low && v <= high))
  present.forEach((v, i) => { table[v] = grey[i] })
  const out = picture(headerNumbers(dicom, 'Columns')[0], headerNumbers(dicom, 'Rows')[0])
  for (let i = 0; i < raw.length; i++) out.data[i] = table[raw[i]]
  return out
}

// The header and place of the pixels; a file that lost its first 132 bytes is read too
function parsedDicom(bytes) {
  if (String.fromCharCode(...bytes.subarray(128, 132)) === 'DICM') return dicomParser.parseDicom(bytes)
  if (bytes[0] !== 2 || bytes[1]) return dicomParser.parseDicom(bytes, {TransferSyntaxUID: '1.2.840.10008.1.2'})
  const whole = new Uint8Array(bytes.length + 132)
  whole.set([68, 73, 67, 77], 128)
  whole.set(bytes, 132)
  return dicomParser.parseDicom(whole)
}

// A file's bytes -> {picture} or {refused: why it is no frontal chest radiograph}; a `Fault` if it cannot be read
function readDicom(bytes, words, mostPixels) {
  let dicom
  try { dicom = parsedDicom(bytes) }
  catch (error) {
    const known = Object.entries(COMPRESSED).find(([uid]) => String(error?.exception ?? error).includes('inflate') && uid.endsWith('.99'))
    throw new Fault(known ? compressedText(known[1]) : 'Cannot be read as DICOM; it is truncated or malformed. Copy or export this file again.')
  }
  const refused = whyRefused(dicom, words), syntax = dicom.string('x00020010')
  if (refused) return {refused}
  refuseSize(headerNumbers(dicom, 'Columns')[0], headerNumbers(dicom, 'Rows')[0], mostPixels)
  if (syntax && !SYNTAXES[syntax] || dicom.elements[TAGS.PixelData]?.encapsulatedPixelData) throw new Fault(compressedText(COMPRESSED[syntax] ?? syntax))
  return {picture: dicomGrey(dicom), notes: dicomNotes(dicom, words)}
}

const compressedText = name => `Its pixels are compressed (${name}), which this page does not read. Export it again without compression, or use chestnb_predict, which reads it.`

if (typeof module !== 'undefined') module.exports = {readDicom, bulkRange, frontalView, seriesView}
