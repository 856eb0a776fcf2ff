//! Everybody hears what one shouts, over plain WebSocket: `cargo run -p engine --example own_dialect`, and Ctrl-C to end it. In a
//! browser's console: `shout = new WebSocket("ws://127.0.0.1:3000/shout"); shout.onmessage = (it) => console.log(it.data)`, then
//! `shout.send("hello")`.

use engine::config::{AuthMode, Config, Endpoint, OwnDialect};
use engine::dialect::{Act, Cx, Dialect, Entry, Publication, Said};
use engine::{Calls, Engine, Notices, StartError, json::Scratch};

struct Shout;

impl Dialect for Shout {
    fn opened(&self, _cx: &Cx<'_>, _query: &str, acts: &mut Vec<Act>) {
        acts.push(Act::Enter(Entry::new("square".into())));
    }

    fn message(&self, cx: &Cx<'_>, said: Said<'_>, _scratch: &mut Scratch, acts: &mut Vec<Act>) {
        if let Said::Text(text) = said {
            acts.push(Act::Publish(Publication::to_all("square".into(), cx.text(&text.to_uppercase()))));
        }
    }
}

pub(crate) fn serve(port: u16) -> Result<(Engine, Notices), StartError> {
    let shout = Endpoint { auth: AuthMode::None, ..Endpoint::new("shout", OwnDialect::plain("shout", &Shout), "/shout") };
    engine::start(Config::new(([127, 0, 0, 1], port), 2, vec![shout]))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (engine, notices) = serve(3000)?;
    eprintln!("ws://{}/shout", engine.local_addr());
    // Answers to questions go to who asked; plain HTTP is not served here, so its sockets are closed.
    Ok(Calls::default().run(&notices, drop)?)
}
