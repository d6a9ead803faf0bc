import { expect, test } from 'vitest';
import { backportsEntry, hasBackports } from '../setup/apt-sources.mjs';

const debian = `Types: deb deb-src
# a snapshot stood here
URIs: http://mirror.example/debian http://second.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
`;

test('a deb822 entry keeps its mirror and its key, and gets the suite of the backports', () => {
  expect(backportsEntry([{ path: 'debian.sources', text: debian }], 'bookworm')).toEqual({
    format: 'sources',
    text: `Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`,
  });
});

test('a key that stands in the entry itself keeps all of its lines', () => {
  const text = `Types: deb
URIs: https://mirror.example/debian
Suites: stable
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
`;
  expect(backportsEntry([{ path: 'a.sources', text }], 'bookworm')?.text).toBe(
    text.replace('Suites: stable', 'Suites: bookworm-backports').replace('Signed-By:', 'Signed-By: '),
  );
});

test('a one-line entry keeps its options', () => {
  const text = `# deb http://old.example/debian bookworm main
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb http://mirror.example/debian-security bookworm-security main
deb [arch=amd64 signed-by=/usr/share/keyrings/d.gpg] http://mirror.example/debian bookworm main non-free # the mirror
`;
  expect(backportsEntry([{ path: 'sources.list', text }], 'bookworm')).toEqual({
    format: 'list',
    text: 'deb [arch=amd64 signed-by=/usr/share/keyrings/d.gpg] http://mirror.example/debian bookworm-backports main\n',
  });
});

test('entries that are off, of other releases, of other archives or in other files give nothing', () => {
  const off = debian.replace('Types: deb deb-src', 'Enabled: no\nTypes: deb');
  expect(backportsEntry([{ path: 'a.sources', text: off }], 'bookworm')).toBeUndefined();
  expect(backportsEntry([{ path: 'a.sources', text: debian }], 'trixie')).toBeUndefined();
  expect(backportsEntry([{ path: 'a.list', text: 'deb https://packages.example/apt tool main\n' }], 'bookworm')).toBeUndefined();
  expect(backportsEntry([{ path: 'a.sources.disabled', text: debian }], 'bookworm')).toBeUndefined();
});

test('backports that a machine already has are seen, commented ones are not', () => {
  expect(hasBackports([{ path: 'b.list', text: 'deb http://m.example/debian bookworm-backports main\n' }], 'bookworm')).toBe(true);
  expect(hasBackports([{ path: 'b.sources', text: 'Suites: bookworm bookworm-backports\n' }], 'bookworm')).toBe(true);
  expect(hasBackports([{ path: 'b.list', text: '# deb http://m.example/debian bookworm-backports main\n' }], 'bookworm')).toBe(false);
  expect(hasBackports([{ path: 'debian.sources', text: debian }], 'bookworm')).toBe(false);
});
