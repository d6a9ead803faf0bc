// The golden runner itself: arguments, one line a case on stdout, reasons and the summary on stderr, a record as JSON.
import { writeFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { HeedError, tiers, withDevice } from '@heed/core';
import { goldenFiles, goldenLine, loadGoldenCase, runGoldenCase } from '@heed/core/testing';

const USAGE = `npm run golden -- <folder or files...> [--tier ${tiers.join('|')}] [--only OP]... [--json FILE]

  --tier T     caps the device to the tier; a kernel that has a form for it and ran below makes a case fell-back
  --only OP    runs this op and those beneath it (topk/zeta is topk/zeta.attention too); may be given more than once
  --json FILE  writes every figure to FILE
  --make-matrix-cases  runs nothing; makes the cases of test/matrix-cases again from the float64 references
  --bundle FILE  runs nothing; writes this runner with all mappings as one script, for a machine without the workspace

One line a case: pass|fail|unsupported|fell-back, op, file, largest error as a share of its tolerance, tier, kernel@tier,...
Ends with 0 when all cases pass, 1 when one does not, 2 when the request makes no sense.`;

/** @typedef {import('@heed/core/testing').GoldenMapping} GoldenMapping */
/** @typedef {import('@heed/core/testing').GoldenReport} GoldenReport */

/** @param {string[]} args */
function parse(args) {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      tier: { type: 'string' },
      only: { type: 'string', multiple: true, default: [] },
      json: { type: 'string' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  const tier = tiers.find((name) => name === values.tier);
  if (values.tier !== undefined && tier === undefined) throw new Error(`--tier is ${values.tier}; use one of ${tiers.join(', ')}`);
  if (positionals.length === 0 && !values.help) throw new Error('no folder or file was given; name folders or files of golden cases');
  return { ...values, tier, paths: positionals };
}

/** @param {readonly GoldenMapping[]} mappings @returns {GoldenMapping} */
function merge(mappings) {
  /** @type {Record<string, GoldenMapping[string]>} */
  const merged = {};
  for (const [op, how] of mappings.flatMap((mapping) => Object.entries(mapping))) {
    if (op in merged) throw new HeedError('INVALID_ARGUMENT', `golden: ${op} is mapped by two packages; map it in one`);
    merged[op] = how;
  }
  return merged;
}

/**
 * @param {string[]} args
 * @param {readonly GoldenMapping[]} mappings
 * @returns {Promise<number>} exit status
 */
export async function main(args, mappings) {
  let request;
  try {
    request = parse(args);
  } catch (error) {
    console.error(`golden: ${error instanceof Error ? error.message : error}\n\n${USAGE}`);
    return 2;
  }
  if (request.help) {
    console.log(USAGE);
    return 0;
  }
  try {
    return await run(request, merge(mappings));
  } catch (error) {
    if (!(error instanceof HeedError)) throw error;
    console.error(error.message);
    return error.code === 'INVALID_FILE' ? 2 : 1;
  }
}

/**
 * @param {ReturnType<typeof parse>} request
 * @param {GoldenMapping} mapping
 */
async function run({ paths, tier, only, json }, mapping) {
  const files = await goldenFiles(paths);
  return withDevice(
    async (device) => {
      if (tier && device.tier !== tier) {
        throw new HeedError('UNSUPPORTED', `golden: tier ${tier} was asked for; "${device.report.name}" gives ${device.tier}`);
      }
      console.error(`golden: ${files.length} files on ${device.report.name} (${device.report.driver}), tier ${device.tier}`);
      /** @type {GoldenReport[]} */
      const reports = [];
      for (const file of files) {
        const report = await runFile(file, mapping, device, tier, only);
        if (!report) continue;
        reports.push(report);
        console.log(goldenLine(report));
        if (report.message) console.error(`  ${report.message}`);
      }
      if (reports.length === 0) throw new HeedError('INVALID_FILE', `golden: no case is of ${only.join(' or ')}; give another --only`);
      const passed = reports.filter(({ status }) => status === 'pass').length;
      console.error(`golden: ${passed} of ${reports.length} cases pass`);
      if (json !== undefined)
        await writeFile(json, `${JSON.stringify({ device: device.report, tier: device.tier, cases: reports }, plain, 2)}\n`);
      return passed === reports.length ? 0 : 1;
    },
    tier ? { tier } : {},
  );
}

/**
 * @param {string} file
 * @param {GoldenMapping} mapping
 * @param {import('@heed/core').Device} device
 * @param {import('@heed/core').Tier | undefined} tier
 * @param {readonly string[]} only
 * @returns {Promise<GoldenReport | undefined>} undefined where --only leaves the case out
 */
async function runFile(file, mapping, device, tier, only) {
  try {
    const golden = await loadGoldenCase(file);
    if (only.length > 0 && !only.some((op) => golden.op === op || golden.op.startsWith(`${op}.`))) return undefined;
    return { ...(await runGoldenCase(golden, mapping, device, tier)), file };
  } catch (error) {
    if (!(error instanceof HeedError) || error.code !== 'INVALID_FILE') throw error;
    return { status: 'fail', op: '-', file, share: Infinity, tier: device.tier, kernels: [], comparisons: {}, message: error.message };
  }
}

/** JSON has no infinity. @param {string} _ @param {unknown} value */
function plain(_, value) {
  return value === Infinity ? 'infinite' : value;
}
