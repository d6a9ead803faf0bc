import { shippedModels } from './models.js';
import { runDemo } from './session.js';

process.exitCode = await runDemo(process.argv.slice(2), shippedModels(), { out: process.stdout, err: process.stderr });
