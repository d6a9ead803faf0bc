// The built packages in a real browser: headless Chromium, WebGPU on SwiftShader, one bundle that computes and compares.
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build } from 'esbuild';
import { chromium } from 'playwright-core';
import { findChromium } from '../setup/chromium.mjs';
import { root } from '../setup/root.mjs';
import { Stop } from '../setup/steps.mjs';
import { Tally } from './result.mjs';

const FLAGS = [
  '--no-sandbox',
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  '--enable-features=Vulkan',
  '--use-vulkan=swiftshader',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--disable-dev-shm-usage',
];

/** @typedef {{ name: string, error: string, detail: string }} Outcome `error` is empty when the test passed */

/** @param {string} script @returns {Promise<{ url: string, close: () => Promise<void> }>} */
async function serve(script) {
  const server = createServer((request, response) => {
    const asked = request.url === '/page.js';
    response.setHeader('content-type', asked ? 'text/javascript' : 'text/html; charset=utf-8');
    response.end(asked ? script : '<!doctype html><title>heed</title><script type="module" src="/page.js"></script>');
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  return {
    url: `http://127.0.0.1:${port}/`,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}

/** @returns {Promise<string>} the browser tests and the built packages they use, in one file */
async function bundle() {
  const result = await build({
    entryPoints: [join(root, 'tooling/browser/page.mjs')],
    bundle: true,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    write: false,
    logLevel: 'silent',
  });
  return result.outputFiles[0]?.text ?? '';
}

/** @returns {Promise<import('./result.mjs').Count>} */
export async function browser() {
  const executablePath = findChromium();
  if (!executablePath) throw new Stop('browser: no Chromium was found; run npm test, which installs it, or set HEED_CHROMIUM to its path');
  const tally = new Tally();
  const page = await serve(await bundle());
  const profile = mkdtempSync(join(tmpdir(), 'heed-chromium-'));
  const context = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: FLAGS });
  try {
    const tab = await context.newPage();
    /** @type {string[]} */
    const complaints = [];
    tab.on('pageerror', (error) => complaints.push(error.message));
    tab.on('console', (message) => ['error', 'warning'].includes(message.type()) && complaints.push(message.text()));
    await tab.goto(page.url);
    await tab
      .waitForFunction(() => 'outcomes' in globalThis, undefined, { timeout: 240_000 })
      .catch((error) => {
        throw new Error([`browser: the page did not finish: ${error.message}`, ...complaints].join('\n'));
      });
    const outcomes = /** @type {Outcome[]} */ (await tab.evaluate(() => Reflect.get(globalThis, 'outcomes')));
    for (const { name, error, detail } of outcomes) tally.add(name, error === '', error || detail);
    const unexpected = complaints.filter((text) => !/favicon|powerPreference/.test(text));
    tally.add('the page logs no error and no warning', unexpected.length === 0, unexpected.slice(0, 3).join(' | '));
  } finally {
    await context.close();
    await page.close();
    rmSync(profile, { recursive: true, force: true, maxRetries: 3 });
  }
  return tally.count;
}
