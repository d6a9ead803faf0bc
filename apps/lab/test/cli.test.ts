import { expect, test } from 'vitest';
import { labProgram } from '../src/cli.js';

test('the help names every command with what it does', () => {
  const help = labProgram().helpInformation();
  expect(help).toMatch(/prepare \[options\] +write the training bytes/);
});

test('an unknown command is refused', async () => {
  let said = '';
  const program = labProgram()
    .exitOverride()
    .configureOutput({ writeErr: (text) => void (said += text) });
  await expect(program.parseAsync(['fly'], { from: 'user' })).rejects.toMatchObject({ exitCode: 1 });
  expect(said).toContain("unknown command 'fly'");
});
