// The page's start: a name, the token that this page's server signs for it, then the chat. In strict mode, as React suggests.

import { StrictMode, useEffect, useState, type FormEvent } from "react";
import { createRoot } from "react-dom/client";
import { Chat } from "./chat.js";
import "./style.css";

interface Pass {
  token: string;
  url: string;
  /** Seconds. */
  expiresIn: number;
}

/** A token for the name, and another one before it expires. */
function usePass(name: string): Pass | undefined {
  const [pass, setPass] = useState<Pass & { name: string }>();
  useEffect(() => {
    let isCurrent = true, timer: ReturnType<typeof setTimeout>;
    const ask = async () => {
      let again = 2;
      try {
        const answer = await fetch(`/pass?user=${encodeURIComponent(name)}`);
        const given = (await answer.json()) as Pass;
        if (!isCurrent) return;
        setPass({ ...given, name });
        again = given.expiresIn * (2 / 3);
      } catch (error) {
        console.warn("no token, asking again", error);
      }
      if (isCurrent) timer = setTimeout(ask, again * 1000);
    };
    void ask();
    return () => { isCurrent = false; clearTimeout(timer); };
  }, [name]);
  return pass?.name === name ? pass : undefined;
}

function App() {
  const [name, setName] = useState(() => sessionStorage.getItem("name") ?? `Guest ${Math.floor(Math.random() * 900 + 100)}`);
  const [draft, setDraft] = useState(name);
  const pass = usePass(name);
  const use = (event: FormEvent) => {
    event.preventDefault();
    if (!draft.trim()) return;
    sessionStorage.setItem("name", draft.trim());
    setName(draft.trim());
  };
  return (
    <>
      <header>
        <h1>uringcast chat</h1>
        <p>Open this page in a second tab with another name.</p>
        <form onSubmit={use}>
          <label htmlFor="name">Name</label>
          <input id="name" value={draft} onChange={(event) => setDraft(event.target.value)} maxLength={40} autoComplete="off" spellCheck={false} />
          <button disabled={draft.trim() === name}>Use it</button>
        </form>
      </header>
      <Chat key={name} name={name} token={pass?.token} url={pass?.url} />
    </>
  );
}

createRoot(document.getElementById("root")!).render(<StrictMode><App /></StrictMode>);
