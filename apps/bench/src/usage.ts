/** A request that makes no sense, with a sentence for the person who made it. */
export class UsageError extends Error {}
