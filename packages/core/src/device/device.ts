import { bufferUsage, mapModeRead } from './constants.js';
import { formatBytes, HeedError } from '../errors.js';
import { type BindLayout, BindGroups } from './bind-groups.js';
import type { Capabilities, DeviceLimits, DeviceReport, Tier } from './capabilities.js';
import { Compiling } from './compiling.js';
import { type BufferLabel, BufferPool, type Storage } from './pool.js';
import { Recorder } from './recorder.js';

/** Bytes and counts of what is alive on a device. */
export interface MemoryReport {
  /** Bytes in buffers of live tensors. */
  liveBytes: number;
  /** The most that `liveBytes` has been since the device opened or `resetPeak`. */
  peakBytes: number;
  /** Bytes in free buffers that are kept for reuse. */
  pooledBytes: number;
  /** Live tensors, views included. */
  tensors: number;
  buffers: number;
}

/** One kernel that ran, as traces and golden cases report it. */
export interface KernelTrace {
  kernel: string;
  /** The tier whose form ran. */
  tier: Tier;
  /** The tiers that this kernel has forms for. */
  forms: readonly Tier[];
}

/** A compiled pipeline with what it takes to bind it. */
export interface Pipeline {
  name: string;
  key: string;
  wgsl: string;
  tier: Tier;
  trace: KernelTrace;
  /** Undefined until it has compiled. */
  pipeline: GPUComputePipeline | undefined;
  layout: BindLayout;
  /** Milliseconds from creation to readiness, others compiling beside it; undefined until known. */
  compileMs: number | undefined;
}

/** GPU time of one kernel in a profile. */
export interface KernelTime {
  kernel: string;
  calls: number;
  ms: number;
}

const stagingWindow = 16 * 1024 * 1024;

/**
 * An open WebGPU device with its memory pool, command recorder and pipeline cache. Made by `openDevice`; released by
 * `close()`. Errors of the GPU (validation, out of memory, loss) are thrown by the `read()` or `idle()` that follows.
 * Kernels compile beside each other: ops return at once, `read()` and `idle()` wait for what they need.
 */
export class Device {
  readonly gpu: GPUDevice;
  readonly capabilities: Capabilities;
  readonly limits: DeviceLimits;
  readonly report: DeviceReport;
  readonly pool: BufferPool;
  readonly recorder: Recorder;
  readonly pipelines: Map<string, Pipeline> = new Map();
  readonly bindGroups: BindGroups;
  readonly bindLayouts: Map<string, BindLayout> = new Map();
  /** Live tensors; kept by the tensor floor. */
  tensors = 0;
  /** Specialisations by the number of their kernel; kept by the kernel floor. */
  readonly prepared: unknown[] = [];
  /** Calls by their op; kept by ops that remember them. */
  readonly remembered: WeakMap<object, unknown> = new WeakMap();
  /** Dispatches are traced, or refused: `attend` must see each. */
  attentive = false;
  readonly compiling: Compiling;
  private readonly checks: Set<Promise<void>> = new Set();
  private readonly failures: HeedError[] = [];
  private readonly staging: Map<number, GPUBuffer[]> = new Map();
  private traces: KernelTrace[][] = [];
  private lostError: HeedError | undefined;
  private readonly lost: Promise<never>;
  private closed = false;

  constructor(
    gpu: GPUDevice,
    capabilities: Capabilities,
    report: DeviceReport,
    private readonly onClose: () => void,
  ) {
    this.gpu = gpu;
    this.capabilities = capabilities;
    this.limits = capabilities.limits;
    this.report = report;
    this.recorder = new Recorder(
      gpu,
      (kernels, submit) => this.submit(kernels, submit),
      () => this.compiling.finish(),
    );
    this.compiling = new Compiling(
      gpu,
      (what, create) => this.guarded(what, create),
      () => this.recorder.release(),
    );
    this.pool = new BufferPool(
      gpu,
      capabilities.limits,
      (storage) => {
        this.bindGroups.drop(storage);
        this.recorder.destroyBuffer(storage);
      },
      () => this.recorder.flush(),
      (what, create, failed) => this.guarded(what, create, failed),
    );
    const uniforms = { binding: 0, resource: { buffer: this.recorder.uniformBuffer, size: 1024 } };
    this.bindGroups = new BindGroups((label, layout, storages, windows) => {
      const entries = storages.map(({ buffer }, i) => ({ binding: i + 1, resource: { buffer, ...windows?.[i] } }));
      return this.guarded(`binding ${label}`, () => gpu.createBindGroup({ label, layout, entries: [uniforms, ...entries] }));
    });
    this.lost = gpu.lost.then((info) => {
      this.lostError ??= new HeedError(
        'DEVICE_LOST',
        `core: the device "${report.name}" was lost (${info.reason}${info.message ? `: ${info.message}` : ''}); ` +
          'its tensors are gone, open a new device with openDevice()',
      );
      this.attentive = true;
      throw this.lostError;
    });
    this.lost.catch(() => {});
    gpu.addEventListener('uncapturederror', (event) => {
      event.preventDefault();
      this.fail(event.error, 'outside a batch');
    });
  }

  get tier(): Tier {
    return this.capabilities.tier;
  }

  get isSoftware(): boolean {
    return this.report.software;
  }

  /** Live, peak and pooled bytes, tensors and buffers. */
  memory(): MemoryReport {
    return { ...this.pool.report(), tensors: this.tensors };
  }

  /** Starts a new peak at the present live bytes. */
  resetPeak(): void {
    this.pool.resetPeak();
  }

  /** @throws HeedError DEVICE_LOST after loss, DISPOSED after close */
  assertUsable(): void {
    if (this.closed) throw new HeedError('DISPOSED', 'core: the device was closed; open another with openDevice()');
    if (this.lostError) throw this.lostError;
  }

  /** A buffer of so many bytes at least, rounded up to a multiple of 64: kernels may load whole vectors at the tail. */
  allocate(bytes: number, label: BufferLabel): Storage {
    if (this.attentive) this.assertUsable();
    return this.pool.allocate(bytes, label);
  }

  /** Notes a dispatch in the traces. @throws HeedError as `assertUsable` */
  attend(trace: KernelTrace): void {
    this.assertUsable();
    for (const list of this.traces) list.push(trace);
  }

  write(storage: Storage, byteOffset: number, bytes: Uint8Array): void {
    this.assertUsable();
    this.recorder.write(storage, byteOffset, bytes);
  }

  /** Bytes of a buffer after all recorded work, in windows of 16 MiB. */
  async readBytes(storage: Storage, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    this.assertUsable();
    const out = new Uint8Array(bytes);
    const start = byteOffset & ~3;
    const end = Math.ceil((byteOffset + bytes) / 4) * 4;
    for (let at = start; at < end; at += stagingWindow) {
      this.assertUsable(); // between two windows the device may have been lost or closed
      const size = Math.min(stagingWindow, end - at);
      const staging = this.takeStaging(size);
      this.recorder.copy(storage, at, staging, 0, size);
      this.recorder.flush();
      try {
        await this.compiling.done(this.lost);
        await this.settle(staging.mapAsync(mapModeRead, 0, size));
      } catch (error) {
        staging.destroy();
        throw error;
      }
      const window = new Uint8Array(staging.getMappedRange(0, size));
      const from = Math.max(0, byteOffset - at);
      const to = Math.min(size, byteOffset + bytes - at);
      out.set(window.subarray(from, to), at + from - byteOffset);
      staging.unmap();
      this.returnStaging(staging);
    }
    return out;
  }

  /** Resolves when all recorded work is done; throws what went wrong in it. */
  async idle(): Promise<void> {
    this.assertUsable();
    this.recorder.flush();
    await this.compiling.done(this.lost);
    await this.settle(this.gpu.queue.onSubmittedWorkDone());
  }

  /** Runs `create` in error scopes; what it reports surfaces on the next `read()` or `idle()`, after `failed` has been called. */
  guarded<T>(what: string | (() => string), create: () => T, failed?: () => void): T {
    const { gpu } = this;
    gpu.pushErrorScope('validation');
    gpu.pushErrorScope('out-of-memory');
    gpu.pushErrorScope('internal');
    try {
      return create();
    } finally {
      for (let i = 0; i < 3; i++) {
        const check: Promise<void> = gpu.popErrorScope().then(
          (error) => {
            this.checks.delete(check);
            if (!error) return;
            failed?.();
            this.fail(error, typeof what === 'string' ? what : what());
          },
          () => void this.checks.delete(check), // a lost device rejects; `lost` tells
        );
        this.checks.add(check);
      }
    }
  }

  /** Notes every kernel from now until the returned function is called, which gives the list. */
  trace(): () => KernelTrace[] {
    const list: KernelTrace[] = [];
    this.traces.push(list);
    this.attentive = true;
    return () => {
      this.traces = this.traces.filter((other) => other !== list);
      this.attentive = this.closed || this.lostError !== undefined || this.traces.length > 0;
      return list;
    };
  }

  /**
   * GPU time of each kernel that `work` records, by timestamp queries.
   * @throws HeedError UNSUPPORTED where the device has no timestamp queries
   */
  async profile<T>(
    work: () => T | Promise<T>,
    options: { capacity?: number } = {},
  ): Promise<{ result: T; kernels: KernelTime[]; passes: KernelTime[] }> {
    if (!this.capabilities.timestamps) {
      throw new HeedError(
        'UNSUPPORTED',
        `core: "${this.report.name}" has no timestamp queries; profile on a device that has them (a baseline device never asks for them)`,
      );
    }
    const capacity = options.capacity ?? 2048;
    await this.compiling.done(this.lost);
    this.recorder.startTiming(capacity);
    let result: T;
    let resolved: GPUBuffer | undefined;
    let slots: ReturnType<Recorder['stopTiming']>;
    try {
      result = await work();
    } finally {
      await this.compiling.done(this.lost);
      slots = this.recorder.stopTiming((querySet, count, encoder) => {
        const usage = bufferUsage.QUERY_RESOLVE | bufferUsage.COPY_SRC;
        const queries = this.gpu.createBuffer({ label: 'timestamps', size: count * 8, usage });
        resolved = this.gpu.createBuffer({ label: 'timestamps read', size: count * 8, usage: bufferUsage.COPY_DST | bufferUsage.MAP_READ });
        encoder.resolveQuerySet(querySet, 0, count, queries, 0);
        encoder.copyBufferToBuffer(queries, 0, resolved, 0, count * 8);
      });
    }
    const passes: KernelTime[] = [];
    if (resolved) {
      await this.settle(resolved.mapAsync(mapModeRead));
      const ticks = new BigUint64Array(resolved.getMappedRange().slice(0));
      resolved.destroy();
      for (const slot of slots) {
        const ms = Number((ticks[slot.index * 2 + 1] ?? 0n) - (ticks[slot.index * 2] ?? 0n)) / 1e6;
        passes.push({ kernel: slot.kernel, calls: 1, ms });
      }
    }
    const kernels = new Map<string, KernelTime>();
    for (const pass of passes) {
      const entry = kernels.get(pass.kernel) ?? { kernel: pass.kernel, calls: 0, ms: 0 };
      entry.calls++;
      entry.ms += pass.ms;
      kernels.set(pass.kernel, entry);
    }
    return { result, kernels: [...kernels.values()].sort((a, b) => b.ms - a.ms), passes };
  }

  /** Frees everything and lets the process end. Tensors of this device are unusable afterwards. */
  async close(): Promise<void> {
    if (this.closed) return;
    if (!this.lostError) {
      this.recorder.flush();
      await this.compiling.done(this.lost).catch(() => {}); // lost: there is nothing to wait for
      await Promise.race([this.gpu.queue.onSubmittedWorkDone(), this.gpu.lost]);
    }
    this.closed = true;
    this.attentive = true;
    this.pool.trim(0);
    for (const list of this.staging.values()) for (const buffer of list) buffer.destroy();
    this.compiling.clear();
    this.recorder.destroy();
    this.pipelines.clear();
    this.bindGroups.clear();
    this.gpu.destroy();
    this.onClose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private submit(kernels: ReadonlySet<string>, submit: () => void): void {
    this.guarded(() => {
      const names = [...kernels];
      const what = names.length === 0 ? 'copying' : `running ${names.slice(0, 6).join(', ')}`;
      return `${what}${names.length > 6 ? `, and ${names.length - 6} more` : ''}`;
    }, submit);
  }

  /** Waits for `work`, loss or an error in what was submitted, whichever tells first. */
  private async settle(work: Promise<unknown>): Promise<void> {
    const done = work.catch((error: unknown) => {
      // nobody unmaps a window that is being read: only loss aborts, and `lost` may tell it a moment later
      if (error instanceof Error && error.name === 'AbortError') return this.lost;
      this.failures.push(new HeedError('KERNEL_FAILED', `core: the GPU refused a read: ${String(error)}`));
      return undefined;
    });
    done.catch(() => {});
    await Promise.race([Promise.all(this.checks), this.lost]);
    this.throwFailure();
    await Promise.race([done, this.lost]);
    // a lost device rejects the map before `lost` resolves
    await Promise.race([this.lost, Promise.resolve()]);
    this.throwFailure();
  }

  private throwFailure(): void {
    const failure = this.failures.shift();
    if (!failure) return;
    this.failures.length = 0;
    throw failure;
  }

  private fail(error: GPUError, during: string): void {
    const memory = this.pool.report();
    if (typeof GPUOutOfMemoryError !== 'undefined' && error instanceof GPUOutOfMemoryError) {
      this.failures.push(
        new HeedError(
          'OUT_OF_MEMORY',
          `core: out of GPU memory ${during} (${formatBytes(memory.liveBytes)} live, ${formatBytes(memory.pooledBytes)} pooled); ` +
            'use shorter sequences, smaller batches or checkpoint()',
        ),
      );
      return;
    }
    this.failures.push(new HeedError('KERNEL_FAILED', `core: the GPU reported an error ${during}: ${error.message}`));
  }

  private takeStaging(bytes: number): GPUBuffer {
    const size = Math.max(256, 2 ** Math.ceil(Math.log2(bytes)));
    return (
      this.staging.get(size)?.pop() ??
      this.gpu.createBuffer({ label: 'read-back window', size, usage: bufferUsage.MAP_READ | bufferUsage.COPY_DST })
    );
  }

  private returnStaging(buffer: GPUBuffer): void {
    const list = this.staging.get(buffer.size) ?? [];
    if (list.length < 2) list.push(buffer);
    else buffer.destroy();
    this.staging.set(buffer.size, list);
  }
}
