// The ways a reader says no: a reason code of reason-codes.md, or a frame that takes a zstd library.

export class Refused extends Error {
  constructor(reason) {
    super(reason);
    this.name = "Refused";
    this.reason = reason;
  }
}

export class NeedsZstd extends Error {
  constructor() {
    super("a frame holds a compressed block: needs zstd");
    this.name = "NeedsZstd";
  }
}

export function check(holds, reason) {
  if (!holds) throw new Refused(reason);
}
