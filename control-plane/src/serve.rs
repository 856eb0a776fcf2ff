//! Starts the server, keeps it, and stops it: the order in which threads begin and end. Everything that can fail for a wrong setting is
//! tried before the first client is let in.
//!
//! Threads: this one waits for signals; the engine has one per shard; `bridge` passes the engine's notices on; `events` takes
//! what the shards tell; `control` serves HTTP and the webhook of the events.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use engine::ids::ShardId;
use engine::{Engine, EngineLost, Frozen, Handover, Notices, OpenInquiry, RelayState, StartError};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use crate::activation::{self, ActivationFault, Passed};
use crate::bridge::{self, HANDOVERS_MAX, Pending};
use crate::events::{self, Events, Past, webhook};
use crate::hooks::{Hooks, Queue};
use crate::http::listener::Listener;
use crate::http::throttle::Allowance;
use crate::http::{Admission, App, Dev, Origins, Terms, admin, monotonic_ms, public};
use crate::jwks::Keeper;
use crate::lifecycle::{self, Drain, Draining, Stop, Wanted};
use crate::log;
use crate::outbound::Outbound;
use crate::relay;
use crate::reload::{self, Inherited, Own, Program, Refused};
use crate::secret::Secret;
use crate::settings::{ControlListen, Problems, Settings};
use crate::signals::Signals;
use crate::store;
use crate::watchdog::Watchdog;

/// sysexits.h EX_SOFTWARE: a shard ended although nobody asked it to.
const EXIT_SOFTWARE: u8 = 70;

/// How long readers of the events have for what is left when the server stops.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long a reload waits for answers of others, while nobody is read: the back end's, other hosts', clients' acknowledgements. What has not come then counts as not having come in time.
const REST_PATIENCE: Duration = Duration::from_secs(1);
/// How long HTTP is served at least after the beginning of a stop: time to write an answer.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Time between two samples of the counters that rates are made of.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
enum StartFault {
    #[error(transparent)]
    Activation(#[from] ActivationFault),
    #[error("cannot block signals: {0}")]
    Signals(io::Error),
    #[error("control listener {0}: {1}")]
    Control(String, io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("it is not known how this process was started: {0}")]
    Own(io::Error),
    #[error(transparent)]
    Engine(#[from] StartError),
}

/// Runs the server until a signal or the admin API stops it. The result is the process's exit status.
///
/// With what a former process has left it goes on from there, or gives the process back to it.
pub fn run(settings: Settings, mut inherited: Option<Inherited>) -> ExitCode {
    let frozen = inherited.as_mut().and_then(Inherited::take_frozen);
    let status = match start(settings, frozen, inherited.as_ref()) {
        Ok(server) => {
            if let Some(inherited) = inherited {
                server.has_taken_over(inherited);
            }
            server.keep()
        }
        Err(fault) => {
            log::error(&fault);
            if let Some(inherited) = &inherited {
                log::error(inherited.go_back(&fault.to_string()));
            }
            fault.exit_code()
        }
    };
    log::flush();
    status
}

impl StartFault {
    /// What another start would fail at again has the status of a wrong setting.
    fn exit_code(&self) -> ExitCode {
        match self {
            StartFault::Activation(_) | StartFault::Engine(StartError::Config(_) | StartError::Listeners { .. }) => {
                ExitCode::from(Problems::EXIT_STATUS)
            }
            _ => ExitCode::FAILURE,
        }
    }
}

/// Everything that runs, and what it takes to stop it.
struct Server {
    signals: Signals,
    engine: Arc<Engine>,
    app: Arc<App>,
    own: Own,
    /// The control plane's listener, and where it is.
    listening: (OwnedFd, String),
    wishes: Receiver<Wanted>,
    drained: Receiver<ShardId>,
    events: Taker,
    bridge: JoinHandle<Result<(), EngineLost>>,
    control: Control,
    drain: Duration,
    dev_seed: Option<Secret>,
}

/// The thread that takes what the shards tell. Dropping `stop` ends it.
struct Taker {
    stop: crossbeam_channel::Sender<()>,
    thread: JoinHandle<()>,
}

/// The HTTP server's thread. Dropping `stop` ends it.
struct Control {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

fn start(mut settings: Settings, frozen: Option<Frozen>, inherited: Option<&Inherited>) -> Result<Server, StartFault> {
    // Before the first thread: all of them inherit the mask.
    let signals = Signals::block().map_err(StartFault::Signals)?;
    let own = Own::new(settings.configuration.clone()).map_err(StartFault::Own)?;
    // A former process has left those that it was given with all others.
    let Passed { listeners: passed, left } = if inherited.is_some() { Passed::default() } else { activation::passed()? };
    let place = shown_listen(&settings.control_listen);
    let fault = |fault| StartFault::Control(place.clone(), fault);
    let control = match inherited.and_then(|inherited| inherited.listener(&place)) {
        Some(fd) => Listener::adopt(&settings.control_listen, fd).map_err(fault)?,
        None => Listener::bind(&settings.control_listen).map_err(fault)?,
    };
    let listening = (control.descriptor().map_err(fault)?, place.clone());
    let (hooks, queue, asked) = match settings.hooks.as_ref().map(|hooks| Hooks::new(hooks, Outbound::new())) {
        Some((hooks, queue, asked)) => (Some(hooks), Some(queue), Some(asked)),
        None => (None, None, None),
    };
    let (stop, wishes) = crossbeam_channel::bounded(1);
    let terms = Terms { hooks, ..terms(&settings, stop) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartFault::Thread)?;
    let mut keeper = settings.jwks;
    if let Some(keeper) = &mut keeper {
        runtime.block_on(keeper.begin());
    }
    let fleet = settings.redis.as_deref().zip(settings.engine.relay.as_ref()).map(|(place, relay)| relay::introduction(place, relay));
    let has_store = inherited.is_some_and(|inherited| inherited.program.has_store);
    if has_store {
        // The copies of before would count against the new ones.
        store::renew(&[]);
    }
    if settings.engine.keep_sockets && !has_store {
        settings.engine.keep_sockets = store::try_out().inspect_err(warn_of_no_store).is_ok();
    }
    let (engine, notices) = match frozen {
        Some(frozen) => engine::start_from(settings.engine, &frozen)?,
        None => engine::start_on(settings.engine, &passed)?,
    };
    let engine = Arc::new(engine);
    log_start(&engine, &control, passed.len(), fleet.as_deref());
    let greeting =
        terms.dev.as_ref().map(|dev| Greeting::new(dev, settings.admin_token.as_ref(), engine.local_addr(), control.to_string()));

    let pending = Arc::new(Pending::of_generation(engine.generation()));
    let (handovers, handed_over) = mpsc::channel(HANDOVERS_MAX);
    let (at_bridge, drained) = crossbeam_channel::bounded(engine.stats().len());
    let (at_relay, states) = mpsc::channel(relay::STATES_MAX);
    let past = inherited.and_then(|inherited| inherited.program.events.clone());
    let app = Arc::new(App::after(engine.clone(), pending.clone(), terms, past));
    let own_app = app.clone();
    let bridge = start_bridge(notices, pending, handovers, queue, at_relay, at_bridge, Arc::downgrade(&app))?;
    let events = start_taker(&engine, app.events.clone())?;
    runtime.spawn(relay::keep_log(states));
    let control = start_control(runtime, control, handed_over, asked, app, keeper)?;
    if let Some(greeting) = greeting {
        // A closed standard output is no reason not to serve.
        let _ = io::stdout().lock().write_all(greeting.to_string().as_bytes());
    }
    if !left.is_empty() || !engine.kept().is_empty() {
        store::renew(engine.kept());
    }
    lifecycle::notify("READY=1");
    if !left.is_empty() {
        store::say_goodbye(left);
    }
    let (drain, dev_seed) = (settings.drain, settings.dev_seed);
    Ok(Server { signals, engine, app: own_app, own, listening, wishes, drained, events, bridge, control, drain, dev_seed })
}

impl Server {
    fn keep(self) -> ExitCode {
        let mut watchdog = Watchdog::of_environment();
        let mut glance = || {
            if let Some(watchdog) = &mut watchdog {
                watchdog.look(|| self.engine.longest_silence());
            }
        };
        let stop = loop {
            match lifecycle::wait_for_stop(&self.signals, &self.wishes, || !self.bridge.is_finished(), &mut glance) {
                Stop::Reload => {
                    if let Some(over) = self.reload() {
                        break Stop::Asked(over);
                    }
                }
                stop => break stop,
            }
        };
        let over = match stop {
            Stop::Lost | Stop::Reload => return self.lost(),
            Stop::Signalled => self.drain,
            Stop::Asked(over) => over,
        };
        let began = Instant::now();
        if stop == Stop::Signalled {
            // Not for the admin API: a service manager that thinks that we are being stopped sends no signal, and that may still come.
            lifecycle::notify_stopping(over);
        }
        log::info(format_args!("stopping: closing all connections within {} s", over.as_secs_f32()));
        self.engine.drain(over);
        let mut draining = Draining::new(&self.signals, &self.drained, self.engine.stats().len());
        let mut outcome = draining.wait(over, &mut glance);
        if let (Drain::Signalled, Stop::Asked(_)) = (outcome, stop) {
            // Whoever sends it waits no longer than he always does, and clients are told all the same.
            let rest = over.saturating_sub(began.elapsed()).min(self.drain);
            lifecycle::notify_stopping(rest);
            log::info(format_args!("stopping sooner: closing all connections within {} s", rest.as_secs_f32()));
            self.engine.drain(rest);
            outcome = draining.wait(rest, &mut glance);
        }
        if outcome == Drain::Lost {
            return self.lost();
        }
        // An empty server has nobody to close, but whoever asked is to hear that it has begun.
        std::thread::sleep(ANSWER_TIME.saturating_sub(began.elapsed()));
        self.end(outcome);
        ExitCode::SUCCESS
    }

    /// Replaces the process by itself, or goes on and says why. What is returned is the time of a stop that was asked for meanwhile.
    fn reload(&self) -> Option<Duration> {
        log::info("reloading");
        lifecycle::notify_reloading(reload::now_ns());
        let refused = match self.replace() {
            Ok(never) => match never {},
            Err(refused) => refused,
        };
        let over = if let Refused::Stop(over) = refused { Some(over) } else { None };
        let refused = refused.to_string();
        log::error(format_args!("not reloaded: {refused}"));
        self.app.reloads.refuse(&refused);
        lifecycle::notify(&format!("READY=1\nSTATUS=not reloaded: {refused}"));
        over
    }

    fn replace(&self) -> Result<Infallible, Refused> {
        self.own.check()?;
        let app = &self.app;
        app.pause.begin();
        let paused_ns = reload::now_ns();
        let outcome = self.engine.freeze(REST_PATIENCE, || !app.pause.is_quiet()).map_err(Refused::from).and_then(|frozen| {
            let program = Program {
                paused_ns,
                frozen_ns: reload::now_ns(),
                control: Some((self.listening.0.as_raw_fd(), self.listening.1.clone())),
                refused: app.reloads.refused.load(Relaxed),
                events: Some(self.events_until_now()),
                has_store: !self.engine.kept().is_empty(),
                dev_seed: self.dev_seed.as_ref().map(|seed| String::from_utf8_lossy(seed.reveal()).into_owned()),
                ..Program::default()
            };
            self.refuse_wishes()?;
            log::flush();
            // Here for as long as that fails.
            self.own.replace(frozen, program).inspect_err(|_| {
                let _ = self.wishes.try_recv();
            })
        });
        // Still here: it has failed.
        self.engine.resume();
        app.pause.end();
        outcome
    }

    /// From now on the admin API can wish nothing, because it would be forgotten with this process: the one place for a wish is taken. Whoever was told before that the server
    /// stops is right, and it is not replaced; a reload that was wished is this one.
    fn refuse_wishes(&self) -> Result<(), Refused> {
        while self.app.terms.stop.try_send(Wanted::Reload).is_err() {
            if let Ok(Wanted::Stop(over)) = self.wishes.try_recv() {
                return Err(Refused::Stop(over));
            }
        }
        Ok(())
    }

    /// Where the events have come to, when everything is at rest and told.
    fn events_until_now(&self) -> Past {
        let told = self.engine.events();
        let until = Instant::now() + REST_PATIENCE;
        while !told.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(200));
        }
        // The last batch has been taken, and is written down in the next moment.
        std::thread::sleep(Duration::from_millis(2));
        self.app.events.past()
    }

    /// The former process's last word, or, when that was given back, this one's.
    fn has_taken_over(&self, inherited: Inherited) {
        let reloads = &self.app.reloads;
        reloads.done.store(self.engine.generation(), Relaxed);
        reloads.refused.store(inherited.program.refused, Relaxed);
        let returned = inherited.returned.clone();
        if let Some(reason) = &returned {
            reloads.refuse(reason);
        }
        let (pause, parts) = inherited.settle();
        reloads.pause_us.store(u64::try_from(pause.as_micros()).unwrap_or(u64::MAX), Relaxed);
        let ms = pause.as_secs_f64() * 1_000.0;
        match returned {
            Some(reason) => log::error(format_args!("not reloaded, after a pause of {ms:.1} ms: {reason}")),
            None => log::info(format_args!("reloaded (number {}), after a pause of {ms:.1} ms ({parts})", self.engine.generation())),
        }
    }

    /// The bridge has ended, and with it the reason to go on: whoever started us does it better again. Everything that still runs ends
    /// with the process.
    fn lost(self) -> ExitCode {
        match self.bridge.join() {
            Ok(Err(lost)) => log::error(lost),
            _ => log::error("the engine ended by itself"),
        }
        ExitCode::from(EXIT_SOFTWARE)
    }

    /// HTTP last: until the drain is over it tells that we are stopping. Threads that would not end in time end with the process.
    fn end(self, drain: Drain) {
        if !self.engine.kept().is_empty() {
            // Everybody has had his goodbye, or has none coming.
            store::renew(&[]);
        }
        // What the last connections did has been told before their shards were empty.
        drop(self.events.stop);
        let _ = self.events.thread.join();
        drop(self.control.stop);
        let _ = self.control.thread.join();
        if matches!(drain, Drain::CutShort | Drain::Signalled) {
            log::warning("stopped before all connections were closed");
            return;
        }
        drop(self.app);
        if let Some(engine) = Arc::into_inner(self.engine) {
            engine.join();
            let _ = self.bridge.join();
        }
        log::info("stopped");
    }
}

fn warn_of_no_store(reason: &store::NoStore) {
    log::warning(format_args!("server.keep_sockets has no effect: {reason}"));
}

fn terms(settings: &Settings, stop: crossbeam_channel::Sender<Wanted>) -> Terms {
    Terms {
        admission: admission(settings),
        origins: if settings.any_origin { Origins::Any } else { Origins::Listed(settings.engine.origins.clone()) },
        bundle: settings.bundle.clone(),
        jwks: settings.jwks.as_ref().map(Keeper::watch),
        journal: settings.journal,
        webhook: settings.webhook.clone(),
        dev: settings.dev.then(|| Dev { secret: settings.dev_secret.clone() }),
        hooks: None,
        drain: settings.drain,
        allowance: Allowance { calls: settings.engine.limits.rate_messages, window_ms: settings.engine.limits.rate_window_ms },
        stop,
    }
}

fn admission(settings: &Settings) -> Admission {
    match (&settings.admin_token, &settings.control_listen) {
        (Some(token), _) => Admission::Token(token.clone()),
        (None, ControlListen::Unix(_)) => Admission::Anybody,
        (None, ControlListen::Tcp(_)) if settings.dev => Admission::Anybody,
        (None, ControlListen::Tcp(_)) => Admission::Nobody,
    }
}

fn start_bridge(
    notices: Notices,
    pending: Arc<Pending>,
    handovers: mpsc::Sender<Handover>,
    hooks: Option<Queue>,
    relay: mpsc::Sender<RelayState>,
    drained: crossbeam_channel::Sender<ShardId>,
    app: Weak<App>,
) -> Result<JoinHandle<Result<(), EngineLost>>, StartFault> {
    let thread = std::thread::Builder::new().name("bridge".into());
    let answer = move |ask, text: &str| {
        // When it is gone, the server is about to be.
        let Some(app) = app.upgrade() else { return };
        if let (Some(fleet), Some(reply)) = (app.host.fleet(), app.answer_program(text)) {
            fleet.reply(ask, reply.into());
        }
    };
    thread.spawn(move || bridge::run(notices, pending, handovers, hooks, relay, drained, answer)).map_err(StartFault::Thread)
}

fn start_taker(engine: &Engine, events: Arc<Events>) -> Result<Taker, StartFault> {
    let told = engine.events();
    let (stop, stopped) = crossbeam_channel::bounded(0);
    let thread = std::thread::Builder::new().name("events".into());
    let thread = thread.spawn(move || events::run(told, stopped, events)).map_err(StartFault::Thread)?;
    Ok(Taker { stop, thread })
}

fn start_control(
    runtime: Runtime,
    listener: Listener,
    handovers: mpsc::Receiver<Handover>,
    asked: Option<mpsc::Receiver<OpenInquiry>>,
    app: Arc<App>,
    keeper: Option<Keeper>,
) -> Result<Control, StartFault> {
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("control".into());
    let live = move || {
        if let Some(keeper) = keeper {
            runtime.spawn(keeper.keep());
        }
        runtime.block_on(serve_http(listener, handovers, asked, app, stopped));
        // A look at a file that hangs is not waited for.
        runtime.shutdown_background();
    };
    let thread = thread.spawn(live).map_err(StartFault::Thread)?;
    Ok(Control { stop, thread })
}

/// Serves both parts until told to stop.
async fn serve_http(
    listener: Listener,
    handovers: mpsc::Receiver<Handover>,
    asked: Option<mpsc::Receiver<OpenInquiry>>,
    app: Arc<App>,
    stopped: oneshot::Receiver<()>,
) {
    if let (Some(hooks), Some(asked)) = (app.terms.hooks.clone(), asked) {
        tokio::spawn(hooks.serve(asked));
    }
    tokio::spawn(public::serve(handovers, public::router(app.clone()), app.pause.clone()));
    tokio::spawn(sample(app.clone()));
    let events = app.events.clone();
    follow_events(&app);
    let pause = app.pause.clone();
    let admin = listener.serve(admin::router(app), pause);
    let last_words = async {
        let _ = stopped.await;
        // Readers get what is left; who does not take it now does not get it.
        let _ = tokio::time::timeout(LAST_WORDS, events.unread()).await;
    };
    tokio::select! {
        () = last_words => {}
        Err(fault) = admin => log::error(format_args!("the control listener ended: {fault}")),
    }
}

/// Starts the webhook, if there is one.
fn follow_events(app: &App) {
    let Some(webhook) = app.terms.webhook.clone() else { return };
    match app.events.read_for_webhook(webhook.types) {
        Ok(reading) => drop(tokio::spawn(webhook::deliver(app.events.clone(), reading, webhook, Outbound::new()))),
        Err(fault) => log::error(format_args!("events webhook: {fault}")),
    }
}

async fn sample(app: Arc<App>) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    loop {
        ticks.tick().await;
        app.sample(monotonic_ms());
    }
}

fn shown_listen(listen: &ControlListen) -> String {
    match listen {
        ControlListen::Tcp(address) => address.to_string(),
        ControlListen::Unix(path) => path.display().to_string(),
    }
}

fn log_start(engine: &Engine, control: &Listener, passed: usize, fleet: Option<&str>) {
    if let Some(note) = engine.io_note() {
        log::warning(note);
    }
    let (address, shards, io) = (engine.local_addr(), engine.stats().len(), engine.io_name());
    log::info(format_args!(
        "version {} serves: public http://{address} control {control} ({shards} shards, {io})",
        env!("CARGO_PKG_VERSION")
    ));
    if passed > 0 {
        log::info(format_args!("the public port is what systemd has bound (sockets: {passed}), and not server.listen"));
    }
    if let Some((fleet, host)) = fleet.zip(engine.host_id()) {
        log::info(format_args!("relay: host {host} of a fleet, by way of {fleet}"));
    }
}

/// What `--dev` prints: all that a person needs to try it out.
struct Greeting {
    page: String,
    control: String,
    admin_token: Option<String>,
    tokens: Vec<(&'static str, String)>,
}

impl Greeting {
    fn new(dev: &Dev, admin_token: Option<&Secret>, public: SocketAddr, control: String) -> Greeting {
        let tokens = ["alice", "bob"].into_iter().filter_map(|name| Some((name, dev.token(name)?)));
        let admin_token = admin_token.map(|token| String::from_utf8_lossy(token.reveal()).into_owned());
        Greeting { page: format!("http://{}/", reachable(public)), control, admin_token, tokens: tokens.collect() }
    }
}

impl fmt::Display for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nFor trying out only: every secret is made up for this run.\n")?;
        writeln!(f, "  chat in two tabs   {}", self.page)?;
        writeln!(f, "  control plane      {}", self.control)?;
        if let Some(token) = &self.admin_token {
            writeln!(f, "  admin token        {token}")?;
        }
        for (name, token) in &self.tokens {
            writeln!(f, "  token of {name:<9} {token}")?;
        }
        let authorization = self.admin_token.as_ref().map_or(String::new(), |token| format!(" -H 'Authorization: Bearer {token}'"));
        let url = match self.control.strip_prefix("unix:") {
            Some(path) => format!("--unix-socket {path} http://localhost"),
            None => self.control.clone(),
        };
        writeln!(f, "\n  disconnect alice   curl -X DELETE{authorization} {url}/v1/users/alice\n")
    }
}

/// An address a browser on this machine can open: the unspecified one stands for all of them.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_has_a_command_that_works_as_it_stands() {
        let tokens = vec![("alice", "A".to_owned()), ("bob", "B".to_owned())];
        let page = format!("http://{}/", reachable(([0, 0, 0, 0], 3000).into()));
        let greeting = Greeting { page, control: "http://127.0.0.1:9464".into(), admin_token: Some("T".into()), tokens };
        let text = greeting.to_string();
        assert!(text.contains("http://127.0.0.1:3000/"), "{text}");
        assert!(text.contains("curl -X DELETE -H 'Authorization: Bearer T' http://127.0.0.1:9464/v1/users/alice"), "{text}");
        let unix = Greeting { control: "unix:/run/u.sock".into(), admin_token: None, ..greeting };
        assert!(unix.to_string().contains("curl -X DELETE --unix-socket /run/u.sock http://localhost/v1/users/alice"));
    }
}
