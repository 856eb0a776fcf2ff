//! The test profiles: plain echo servers as the conformance suites of the two protocols expect them, without a secret or a configuration.
//! Neither file nor environment has a say in them, and neither can lead to them.

use clap::ValueEnum;
use engine::config::{AuthMode, DialectKind, Endpoint, SocketIo};
use engine::limits::Limits;

use super::sources::{Environment, Flags};
use super::{ControlListen, Problem, Problems, Settings};

/// Which suite is expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TestProfile {
    /// Engine.IO alone at `/engine.io/`: every message comes back.
    #[value(name = "engine.io")]
    EngineIo,
    /// Socket.IO at `/socket.io/` with the namespaces `/` and `/custom`.
    #[value(name = "socket.io")]
    SocketIo,
}

/// More than any suite says in the time that goes with it.
const RATE_MESSAGES: u32 = 1_000_000;

impl TestProfile {
    /// What `--dev` would run with, but for what is served.
    ///
    /// # Errors
    /// When a flag has a value that it cannot have, or would let other hosts in.
    pub fn settings(self, flags: &Flags) -> Result<Settings, Problems> {
        // The suites send two requests on two connections and expect the first to be the first; shards do not wait for each other.
        let shards = flags.shards.clone().unwrap_or_else(|| "1".to_owned());
        let flags = Flags { dev: true, shards: Some(shards), ..flags.clone() };
        let mut settings = Settings::load(&flags, &Environment::new())?;
        keep_to_this_host(&settings)?;
        settings.engine.endpoints = self.endpoints();
        settings.engine.socket_io = self.socket_io();
        open_wide(&mut settings.engine.limits);
        Ok(settings)
    }

    fn endpoints(self) -> Vec<Endpoint> {
        [("main", "/"), ("custom", "/custom")]
            .map(|(name, bind)| Endpoint { auth: AuthMode::None, ..Endpoint::new(name, DialectKind::Echo, bind) })
            .into()
    }

    fn socket_io(self) -> SocketIo {
        let (path, raw_echo, connect_timeout_ms) = match self {
            // Nobody connects to a namespace here.
            TestProfile::EngineIo => ("/engine.io/", true, u64::from(u32::MAX)),
            TestProfile::SocketIo => ("/socket.io/", false, 1_000),
        };
        SocketIo { path: path.into(), ping_interval_ms: 300, ping_timeout_ms: 200, connect_timeout_ms, raw_echo, ..SocketIo::default() }
    }
}

/// Whoever reaches a profile is let in, and nothing holds him back: that is for the suites beside it and for nobody else.
fn keep_to_this_host(settings: &Settings) -> Result<(), Problems> {
    let control = match settings.control_listen {
        ControlListen::Tcp(address) => Some(address),
        ControlListen::Unix(_) => None,
    };
    let addresses = [("--listen", Some(settings.engine.listen)), ("--control", control)];
    let open = addresses.into_iter().filter_map(|(flag, address)| Some((flag, address.filter(|it| !it.ip().is_loopback())?)));
    let problems: Vec<Problem> = open
        .map(|(flag, address)| Problem {
            key: flag.to_owned(),
            value: Some(address.to_string()),
            origin: None,
            reason: "a test profile listens on loopback addresses only".to_owned(),
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// Nothing is held back but what a message may be.
fn open_wide(limits: &mut Limits) {
    limits.message_bytes = 1_000_000;
    (limits.rate_messages, limits.rate_window_ms) = (RATE_MESSAGES, 1_000);
    (limits.connections_per_address, limits.handshakes_per_address, limits.handshakes_per_second) = (u32::MAX, u32::MAX, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_needs_nothing_and_obeys_its_flags() {
        for (profile, path) in [(TestProfile::EngineIo, "/engine.io/"), (TestProfile::SocketIo, "/socket.io/")] {
            let settings = profile.settings(&Flags::default()).expect("no secret, no file");
            assert_eq!(settings.engine.socket_io.path, path);
            assert_eq!(settings.engine.listen, ([127, 0, 0, 1], 3000).into());
            let flags = Flags { listen: Some("127.0.0.1:0".into()), shards: Some("2".into()), ..Flags::default() };
            let settings = profile.settings(&flags).expect("good flags");
            assert_eq!((settings.engine.listen.port(), settings.engine.shards.len()), (0, 2));
        }
    }

    #[test]
    fn a_profile_is_for_this_host_only() {
        for (listen, control, good) in [
            ("0.0.0.0:0", "127.0.0.1:0", false),
            ("127.0.0.1:0", "[::]:0", false),
            ("[::1]:0", "unix:/tmp/a-socket", true),
            ("127.0.0.2:0", "127.0.0.1:0", true),
        ] {
            let flags = Flags { listen: Some(listen.into()), control: Some(control.into()), ..Flags::default() };
            let settings = TestProfile::EngineIo.settings(&flags);
            assert_eq!(settings.is_ok(), good, "{listen} {control}: {settings:?}");
        }
    }
}
