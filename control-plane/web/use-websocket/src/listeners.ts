// Who listens to which event. It outlives sockets, so that listening needs none.

import type { ServerEvents } from "./protocol.js";

/** What a back end's own events carry only the application knows. */
type Listener = (...told: any[]) => void;

export interface On {
  <Event extends keyof ServerEvents>(event: Event, listener: (...told: ServerEvents[Event]) => void): () => void;
  (event: string, listener: Listener): () => void;
}

export interface Off {
  <Event extends keyof ServerEvents>(event: Event, listener?: (...told: ServerEvents[Event]) => void): void;
  (event: string, listener?: Listener): void;
}

export class Listeners {
  readonly #byEvent = new Map<string, Set<Listener>>();

  /** Gives back what ends it. A listener is there once, however often it is added. */
  readonly on: On = (event: string, listener: Listener) => {
    const listeners = this.#byEvent.get(event) ?? new Set();
    this.#byEvent.set(event, listeners.add(listener));
    return () => this.off(event, listener);
  };

  /** Without a listener: all of the event. */
  readonly off: Off = (event: string, listener?: Listener) => {
    const listeners = this.#byEvent.get(event);
    if (listener) listeners?.delete(listener);
    if (!listener || listeners?.size === 0) this.#byEvent.delete(event);
  };

  /** Who is added or removed by a listener is not concerned yet, or still. */
  tell(event: string, ...told: unknown[]): void {
    for (const listener of [...(this.#byEvent.get(event) ?? [])]) listener(...told);
  }
}
