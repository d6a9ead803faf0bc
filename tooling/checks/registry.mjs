// A registry on loopback that serves our packed tarballs, so that the install line of the README is run as a reader runs it.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { basename } from 'node:path';

/**
 * @param {{ path: string, manifest: { name: string, version: string } }[]} tarballs
 * @returns {Promise<{ url: string, close: () => Promise<void> }>}
 */
export async function serveTarballs(tarballs) {
  const server = createServer((request, response) => {
    const path = decodeURIComponent((request.url ?? '/').slice(1));
    const file = tarballs.find((tarball) => basename(tarball.path) === path);
    if (file) return void response.end(readFileSync(file.path));
    const found = tarballs.find(({ manifest }) => manifest.name === path);
    if (!found) {
      response.statusCode = 404;
      return void response.end('{}');
    }
    const { name, version } = found.manifest;
    const integrity = `sha512-${createHash('sha512').update(readFileSync(found.path)).digest('base64')}`;
    const tarball = `http://${request.headers.host}/${basename(found.path)}`;
    response.setHeader('content-type', 'application/json');
    response.end(
      JSON.stringify({
        name,
        'dist-tags': { latest: version },
        versions: { [version]: { ...found.manifest, dist: { tarball, integrity } } },
      }),
    );
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  const address = /** @type {import('node:net').AddressInfo} */ (server.address());
  return {
    url: `http://127.0.0.1:${address.port}/`,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}
