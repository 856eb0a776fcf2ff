// A component with the hook, as a test sees it: what it has heard, what it was told.

import { act, cleanup, configure, renderHook, waitFor } from "@testing-library/react";
import { afterEach, expect } from "vitest";
import { useWebSocket, WebSocketEvent, type UseWebSocketOptions, type UseWebSocketResult, type WebSocketError } from "../src/index.js";
import { PATIENCE_MS } from "./server.js";

configure({ asyncUtilTimeout: PATIENCE_MS });
// Also after a test that failed.
afterEach(cleanup);

export class Guest {
  readonly heard: [event: string, ...told: unknown[]][] = [];
  readonly errors: WebSocketError[] = [];
  /** Names of callbacks, with what they were given. */
  readonly called: unknown[][] = [];
  /** What was rendered, in its order: short states too. */
  readonly rendered: string[] = [];
  options: UseWebSocketOptions;
  readonly #hook: { result: { current: UseWebSocketResult }; rerender: (options: UseWebSocketOptions) => void; unmount: () => void };

  constructor(options: UseWebSocketOptions, { isStrict = false } = {}) {
    this.options = options;
    this.#hook = renderHook((given: UseWebSocketOptions) => this.#render(given), { initialProps: options, reactStrictMode: isStrict });
    for (const event of Object.values(WebSocketEvent)) this.now.on(event as string, (...told) => this.heard.push([event, ...told]));
  }

  /** The callbacks are made anew each time, as an application does it. */
  #render(given: UseWebSocketOptions): UseWebSocketResult {
    const result = useWebSocket({
      onConnect: () => this.called.push(["onConnect"]),
      onDisconnect: (reason) => this.called.push(["onDisconnect", reason]),
      onReconnect: (attempt) => this.called.push(["onReconnect", attempt]),
      onError: (error) => this.errors.push(error),
      ...given,
    });
    const state = result.isConnected ? "connected" : result.isReconnecting ? "reconnecting" : "away";
    if (this.rendered.at(-1) !== state) this.rendered.push(state);
    return result;
  }

  get now(): UseWebSocketResult {
    return this.#hook.result.current;
  }

  /** Renders again with other options. */
  change(options: UseWebSocketOptions): void {
    this.options = { ...this.options, ...options };
    act(() => this.#hook.rerender(this.options));
  }

  leave(): void {
    this.#hook.unmount();
  }

  async becomes(wanted: Partial<UseWebSocketResult>): Promise<void> {
    await waitFor(() => expect(this.now).toMatchObject(wanted));
  }

  connected(): Promise<void> {
    return this.becomes({ isConnected: true });
  }

  /** What it has heard of an event, once there is this much of it. */
  async hears(event: string, count = 1): Promise<unknown[]> {
    const of = () => this.heard.filter(([each]) => each === event).map(([, told]) => told);
    await waitFor(() => expect(of().length, `${event}, of ${JSON.stringify(this.heard)}`).toBeGreaterThanOrEqual(count));
    return of();
  }

  async fails(code: string): Promise<WebSocketError> {
    await waitFor(() => expect(this.errors.map((error) => error.code)).toContain(code));
    return this.errors.find((error) => error.code === code)!;
  }
}

export const TIME = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/) as string;
