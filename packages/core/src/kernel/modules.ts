/** A piece of WGSL that several kernels share, with what it needs itself. Included once a kernel. */
export interface WgslModule {
  name: string;
  text: string;
  needs?: readonly WgslModule[];
}

/** Texts of `modules` and of what they need, each once, needs first. */
export function includeModules(modules: readonly WgslModule[]): string {
  const seen = new Set<string>();
  const texts: string[] = [];
  const visit = (module: WgslModule): void => {
    if (seen.has(module.name)) return;
    seen.add(module.name);
    for (const need of module.needs ?? []) visit(need);
    texts.push(`// ${module.name}\n${module.text.trim()}`);
  };
  for (const module of modules) visit(module);
  return texts.join('\n');
}

/** 0 .. n-1, for generators that unroll. */
export function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}

/** `text(0) text(1) ...`, one a line: unrolled code in named variables instead of indexed arrays. */
export function unroll(n: number, text: (i: number) => string, separator = '\n'): string {
  return range(n).map(text).join(separator);
}

/** A float as a WGSL literal. */
export function wgslFloat(value: number): string {
  if (!Number.isFinite(value)) throw new Error(`kernel: ${value} has no WGSL literal`);
  const text = String(value);
  return /[.e]/.test(text) ? text : `${text}.0`;
}
