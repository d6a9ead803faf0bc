import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { formatBytes, HeedError, withDevice, type DeviceReport } from '@heed/core';
import { kernels } from './kernels.js';
import { measure, type Measurement } from './measure.js';
import { type BenchOptions, readOptions, usage, UsageError } from './options.js';

/** What `--json` writes. */
interface BenchRecord {
  readonly date: string;
  readonly node: string;
  readonly webgpu: string;
  readonly device: DeviceReport;
  readonly options: BenchOptions;
  readonly measurements: readonly Measurement[];
}

const time = (ms: number | null): string => (ms === null ? '-' : ms < 10 ? ms.toFixed(3) : ms.toFixed(1)).padStart(10);

function line({ kernel, tokens, wallMs, gpuMs, gflops, peakBytes, error }: Measurement): string {
  const figures = [
    time(gpuMs),
    time(wallMs),
    gflops.toFixed(1).padStart(10),
    formatBytes(peakBytes).padStart(11),
    error.toExponential(1).padStart(9),
  ];
  return `${kernel.padEnd(18)}${String(tokens).padStart(8)}${figures.join('')}`;
}

async function webgpuVersion(): Promise<string> {
  const manifest = new URL('../node_modules/webgpu/package.json', import.meta.url);
  return (JSON.parse(await readFile(manifest, 'utf8')) as { version: string }).version;
}

async function main(args: readonly string[]): Promise<void> {
  if (args.includes('--help')) return console.log(usage);
  const choose = readOptions(args);
  const given = choose({ isSoftware: true });
  await withDevice(
    async (device) => {
      const options = choose(device);
      console.log(
        `${device.report.name} (${device.report.driver}), tier ${device.tier}; ${options.heads} heads of ${options.headDim}, ${options.dtype}, batch 1, medians of ${options.repeats}`,
      );
      console.log(
        `${'kernel'.padEnd(18)}${'tokens'.padStart(8)}${'GPU ms'.padStart(10)}${'wall ms'.padStart(10)}${'GFLOP/s'.padStart(10)}${'peak'.padStart(11)}${'error'.padStart(9)}`,
      );
      const measurements: Measurement[] = [];
      for (const name of options.kernels) {
        for (const tokens of options.tokens) {
          const kernel = kernels[name];
          if (!kernel) continue;
          const measurement = await measure(device, name, kernel, tokens, options);
          measurements.push(measurement);
          console.log(line(measurement));
        }
      }
      if (options.json === undefined) return;
      const record: BenchRecord = {
        date: new Date().toISOString(),
        node: process.version,
        webgpu: await webgpuVersion(),
        device: device.report,
        options,
        measurements,
      };
      await mkdir(dirname(options.json), { recursive: true });
      await writeFile(options.json, `${JSON.stringify(record, undefined, 2)}\n`);
    },
    { exactTimestamps: true, ...(given.tier ? { tier: given.tier } : {}) },
  );
}

main(process.argv.slice(2)).catch((error: unknown) => {
  const plain = error instanceof UsageError || error instanceof HeedError;
  console.error(plain ? error.message : error);
  if (error instanceof UsageError) console.error(`\n${usage}`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
