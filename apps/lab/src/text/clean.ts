/**
 * Plain text as the models read it: LF line ends, no byte-order mark, no white space at line ends, one blank line between
 * paragraphs, one line end at the end. Lines of prose that were wrapped at 72 columns become one line a paragraph again, because
 * the addresses of the corpus are not wrapped and a model should not spend its bits on a typesetter's columns; indented lines
 * (verse, notes) stay as they are. Letters and punctuation are not touched: curly quotes and dashes stay UTF-8.
 */
export function cleanText(raw: string): string {
  const lines = raw
    .replace(/^\uFEFF/, '')
    .replace(/\r\n?/g, '\n')
    .split('\n')
    .map((line) => line.trimEnd());
  const paragraphs: string[] = [];
  let current: string[] = [];
  for (const line of [...lines, '']) {
    if (line !== '') current.push(line);
    else if (current.length > 0) {
      paragraphs.push(unwrap(current));
      current = [];
    }
  }
  return paragraphs.length === 0 ? '' : paragraphs.join('\n\n') + '\n';
}

/** One paragraph: a line joins the one before unless either is indented. */
function unwrap(lines: readonly string[]): string {
  let text = '';
  let joinable = false;
  for (const line of lines) {
    const indented = /^\s/.test(line);
    if (text === '') text = line;
    else text += (joinable && !indented ? ' ' : '\n') + line;
    joinable = !indented;
  }
  return text;
}
