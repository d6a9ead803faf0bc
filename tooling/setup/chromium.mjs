// A Chromium for the browser test.
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { canInstall, installPackage } from './apt.mjs';
import { Stop, note } from './steps.mjs';

const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'];
const PLACES = [
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
  'C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe',
];

/** Path of a Chromium or Chrome, or undefined; the variable HEED_CHROMIUM comes first. */
export function findChromium() {
  const onPath = (process.env.PATH ?? '').split(delimiter).flatMap((folder) => NAMES.map((name) => join(folder, name)));
  return [process.env.HEED_CHROMIUM ?? '', ...onPath, ...PLACES].find((path) => path && existsSync(path));
}

/** @returns {Promise<string>} path of the browser */
export async function ensureChromium() {
  if (!findChromium() && canInstall()) await installPackage('chromium');
  const path = findChromium();
  if (!path) {
    throw new Stop(
      "setup: no Chromium or Chrome was found, and the browser test needs one; install Debian's package chromium (apt-get install chromium) or Chrome, or set HEED_CHROMIUM to its path, then run npm test again",
    );
  }
  note('browser', path);
  return path;
}
