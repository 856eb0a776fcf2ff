// What is asked of the server, each with an end in time. Without a connection a call waits, in its order, for one.

import type { Socket } from "socket.io-client";
import { asAnswer, webSocketError, WebSocketErrorCode, type Answer, type Refusal, type WebSocketError } from "./protocol.js";

/** Calls that wait for a connection: more than a person makes while one may wait. Beyond them a call is refused at once. */
export const WAITING_MAX = 256;

/** The answer to a call that the server has not answered. */
export function unanswered(why: string): Refusal {
  return { success: false, error: webSocketError(WebSocketErrorCode.CONNECTION_ERROR, why) };
}

interface Call {
  event: string;
  said: unknown[];
  /** When it has failed. */
  end: number;
  settle: (answer: Answer) => void;
  timer?: ReturnType<typeof setTimeout>;
}

export class Calls {
  #waiting: Call[] = [];
  readonly #socket: () => Socket | undefined;
  readonly #report: (error: WebSocketError) => void;

  /** `report` hears of calls that failed on this side; what the server refuses it tells by an event as well. */
  constructor(socket: () => Socket | undefined, report: (error: WebSocketError) => void) {
    this.#socket = socket;
    this.#report = report;
  }

  ask(patienceMs: number, event: string, ...said: unknown[]): Promise<Answer> {
    return new Promise((settle) => {
      const call: Call = { event, said, end: performance.now() + patienceMs, settle };
      const socket = this.#socket();
      if (socket?.connected) return this.#send(socket, call);
      if (this.#waiting.length >= WAITING_MAX) return this.#fail(call, "Too many calls wait for a connection");
      call.timer = setTimeout(() => {
        this.#waiting = this.#waiting.filter((each) => each !== call);
        this.#fail(call, "No connection in time");
      }, patienceMs);
      this.#waiting.push(call);
    });
  }

  /** A connection is there. */
  flush(socket: Socket): void {
    for (const call of this.#take(() => true)) this.#send(socket, call);
  }

  /** True exactly if such a call waits for a connection. */
  waits(fits: (event: string, said: unknown) => boolean): boolean {
    return this.#waiting.some((call) => fits(call.event, call.said[0]));
  }

  /** Ends waiting calls that nobody wants any more: told to those who made them, and to nobody else. */
  cancel(why: string, fits: (event: string, said: unknown) => boolean = () => true): void {
    for (const call of this.#take(fits)) call.settle(unanswered(why));
  }

  /** Such calls no longer wait. */
  #take(fits: (event: string, said: unknown) => boolean): Call[] {
    const taken = this.#waiting.filter((call) => fits(call.event, call.said[0]));
    this.#waiting = this.#waiting.filter((call) => !taken.includes(call));
    for (const call of taken) clearTimeout(call.timer);
    return taken;
  }

  #send(socket: Socket, call: Call): void {
    socket.timeout(Math.max(1, call.end - performance.now())).emit(call.event, ...call.said, (missing: Error | null, answer: unknown) => {
      if (!missing) return call.settle(asAnswer(answer));
      const why = socket.connected ? "No answer in time" : "The connection ended before the answer came";
      // A connection that was given up takes its calls with it.
      if (this.#socket() === socket) this.#fail(call, why);
      else call.settle(unanswered(why));
    });
  }

  #fail(call: Call, why: string): void {
    const answer = unanswered(why);
    call.settle(answer);
    this.#report(answer.error);
  }
}
