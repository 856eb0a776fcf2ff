// Three rooms to talk in. All that it knows of the server it knows by the hook.

import { useEffect, useReducer, useRef, useState, type FormEvent } from "react";
import { PresenceStatus, useWebSocket, WebSocketEvent, type UseWebSocketResult } from "@uringcast/use-websocket";

const ROOMS = ["lobby", "kitchen", "garden"];
/** The server ends a typing that is not said again for 5 seconds. */
const TYPING_AGAIN_MS = 3_000;
const TYPING_STOP_MS = 2_500;
const LINES_MAX = 500;

interface Line {
  id: string;
  room: string;
  text: string;
  /** Nobody for what the page itself has to say. */
  from?: string;
  timestamp?: string;
}

/** Lines by arrival; beyond a number the oldest go. */
const keep = (lines: Line[], line: Line) => (lines.some(({ id }) => id === line.id) ? lines : [...lines, line].slice(-LINES_MAX));

/** Who is typing in a room, by what the server says of it. */
function useTypists({ on }: Pick<UseWebSocketResult, "on">, room: string): string[] {
  const [typists, setTypists] = useState<{ userId: string; room: string | undefined }[]>([]);
  useEffect(() => {
    const without = (userId: string, room: string | undefined) => (all: typeof typists) =>
      all.filter((each) => each.userId !== userId || each.room !== room);
    const ends = [
      on(WebSocketEvent.TYPING_START, ({ userId, room }) => setTypists((all) => [...without(userId, room)(all), { userId, room }])),
      on(WebSocketEvent.TYPING_STOP, ({ userId, room }) => setTypists(without(userId, room))),
      on("disconnect", () => setTypists([])),
    ];
    return () => ends.forEach((end) => end());
  }, [on]);
  return typists.filter((each) => each.room === room).map(({ userId }) => userId);
}

/** What is known of the others, by user: nobody is listed who has not said anything. */
function usePeople({ on }: Pick<UseWebSocketResult, "on">): Map<string, PresenceStatus> {
  const [people, setPeople] = useState<Map<string, PresenceStatus>>(new Map());
  useEffect(() => {
    const seen = (userId: string, status?: PresenceStatus) => setPeople((all) => new Map(all).set(userId, status ?? all.get(userId) ?? "online"));
    const ends = [
      on(WebSocketEvent.PRESENCE_UPDATE, ({ userId, status }) => seen(userId, status)),
      on(WebSocketEvent.MESSAGE, ({ from }) => seen(from)),
    ];
    return () => ends.forEach((end) => end());
  }, [on]);
  return people;
}

export function Chat({ name, token, url }: { name: string; token: string | undefined; url: string | undefined }) {
  const [room, setRoom] = useState(ROOMS[0]!);
  const [lines, add] = useReducer(keep, []);
  const [read, setRead] = useState<Record<string, number>>({});
  const note = (text: string) => { for (const each of ROOMS) add({ id: crypto.randomUUID(), room: each, text }); };
  const socket = useWebSocket({
    token, url,
    reconnectionDelay: 500,
    onReconnect: (attempt) => note(`back again, with attempt ${attempt}`),
    onDisconnect: (reason) => note(`disconnected: ${reason}`),
    onError: ({ code, message }) => { if (code !== "CONNECTION_ERROR") note(`${code}: ${message}`); },
  });
  const { isConnected, isReconnecting, lastError, on, joinRoom, leaveRoom, updatePresence } = socket;
  const typists = useTypists(socket, room), people = usePeople(socket);
  const [status, setStatus] = useState<PresenceStatus>("online");
  const shown = lines.filter((line) => line.room === room);
  const unread = (each: string) => lines.filter((line) => line.room === each && line.from).length - (read[each] ?? 0);

  // Once: the hook enters them again whenever it must.
  useEffect(() => {
    for (const each of ROOMS) void joinRoom({ room: each });
    return () => { for (const each of ROOMS) void leaveRoom({ room: each }); };
  }, [joinRoom, leaveRoom]);

  useEffect(() => on(WebSocketEvent.MESSAGE, ({ id, room, from, content, timestamp }) => {
    add({ id, room: room ?? ROOMS[0]!, from, text: content, timestamp });
  }), [on]);

  useEffect(() => {
    if (isConnected) void updatePresence(status);
  }, [isConnected, status, updatePresence]);

  const heard = lines.filter((line) => line.room === room && line.from).length;
  useEffect(() => setRead((all) => ({ ...all, [room]: heard })), [room, heard]);

  const log = useRef<HTMLOListElement>(null);
  // Newer browsers give a promise back, which an effect must not.
  useEffect(() => void log.current?.scrollTo({ top: log.current.scrollHeight }), [shown.length, room]);

  const send = async (text: string) => {
    const sent = await socket.sendMessage({ room, content: text });
    if (sent.success) add({ id: sent.id, room, from: name, text, timestamp: sent.timestamp });
    else add({ id: crypto.randomUUID(), room, text: `not sent: ${text} (${sent.error.message})` });
  };

  const state = isConnected ? "connected" : isReconnecting ? "reconnecting…" : lastError ? lastError.message : "connecting…";
  return (
    <main>
      <nav aria-label="rooms">
        <div className="state" role="status"><span className={`dot ${isConnected ? "open" : isReconnecting ? "busy" : ""}`} />{state}</div>
        {ROOMS.map((each) => (
          <button key={each} aria-current={each === room} onClick={() => setRoom(each)}>
            # {each}{each !== room && unread(each) > 0 && <span className="unread">{unread(each)}</span>}
          </button>
        ))}
        <label className="status">I am
          <select value={status} onChange={(event) => setStatus(event.target.value as PresenceStatus)}>
            {[PresenceStatus.ONLINE, PresenceStatus.AWAY, PresenceStatus.BUSY].map((each) => <option key={each}>{each}</option>)}
          </select>
        </label>
        <ul className="people" aria-label="people">
          {[...people].sort().map(([person, status]) => <li key={person}><span className={`dot ${status}`} />{person}<small>{status}</small></li>)}
        </ul>
      </nav>
      <section aria-label={`chat in ${room}`}>
        <ol className="log" ref={log} aria-live="polite" tabIndex={0}>
          {shown.length === 0 && <li className="note">Nothing said here yet.</li>}
          {shown.map(({ id, from, text, timestamp }) => (from === undefined
            ? <li key={id} className="note">{text}</li>
            : (
              <li key={id} className={from === name ? "message own" : "message"}>
                <small>{from === name ? "" : `${from} · `}{clock(timestamp)}</small>{text}
              </li>
            )))}
        </ol>
        <div className="typing">{typists.length > 0 && `${typists.slice(0, 3).join(", ")}${typists.length > 3 ? " and others" : ""} typing…`}</div>
        <Write key={room} room={room} isReady={isConnected} onSend={send} startTyping={socket.startTyping} stopTyping={socket.stopTyping} />
      </section>
    </main>
  );
}

const clock = (timestamp = "") => new Date(timestamp).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

interface WriteProps extends Pick<UseWebSocketResult, "startTyping" | "stopTyping"> {
  room: string;
  isReady: boolean;
  onSend: (text: string) => void;
}

function Write({ room, isReady, onSend, startTyping, stopTyping }: WriteProps) {
  const [text, setText] = useState("");
  const typing = useRef<{ since: number; pause?: ReturnType<typeof setTimeout> }>({ since: 0 });
  const stop = () => {
    clearTimeout(typing.current.pause);
    if (typing.current.since) stopTyping(room);
    typing.current = { since: 0 };
  };
  useEffect(() => stop, []);
  const type = (text: string) => {
    setText(text);
    if (!text) return stop();
    if (Date.now() - typing.current.since > TYPING_AGAIN_MS) {
      typing.current.since = Date.now();
      startTyping(room);
    }
    clearTimeout(typing.current.pause);
    typing.current.pause = setTimeout(stop, TYPING_STOP_MS);
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (!text.trim()) return;
    stop();
    setText("");
    onSend(text.trim());
  };
  return (
    <form className="write" onSubmit={submit}>
      <input
        aria-label="message" placeholder={`Write to ${room}`} maxLength={4000} autoComplete="off"
        value={text} onChange={(event) => type(event.target.value)}
      />
      <button disabled={!isReady || !text.trim()}>Send</button>
    </form>
  );
}
