//! Reload in place: the process replaces itself, by the same program or by the one that stands where it was started from, with the configuration as it is now, and goes on with
//! all connections. What stands in the way is found before anything is touched, by the new program itself, as a child with the same arguments; and should it not be able to take over after
//! all, it gives the process back to the old one. The state goes through a file in memory whose descriptor the environment names.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fmt;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::shard::frozen::VERSION;
use engine::{Frozen, NotThawed};
use serde::{Deserialize, Serialize};

use crate::events::Past;
use crate::secret::Secret;

mod exec;

/// Names the descriptor of the state.
const STATE: &str = "URINGCAST_STATE_FD";
/// Says why the newer program has given the process back.
const RETURNED: &str = "URINGCAST_STATE_RETURNED";

/// Variables that are no settings.
pub const OWN_VARIABLES: [&str; 2] = [STATE, RETURNED];

/// What socket activation has said is said to the first program only: the same process would take the descriptors for its own again.
const ACTIVATION: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];

/// How long the new program may take to say whether it can take over. It reads files and looks up nothing. Nobody feeds the watchdog meanwhile: with half of the 30 s of our unit gone, and the time that
/// rest may take, it is still in time.
const CHECK_TIME: Duration = Duration::from_secs(8);

/// How much of what the new program says is heard, in bytes: a list of all that is wrong with a configuration is shorter, and what is longer waits until its time is over.
const SAID_BYTES_MAX: u64 = 64 * 1024;

/// Nanoseconds of the clock that goes on over a replacement, as systemd wants it too.
pub fn now_ns() -> u64 {
    exec::monotonic_ns()
}

/// Has another process reload, by SIGHUP.
///
/// # Errors
/// When there is no such process, or it is somebody else's.
pub fn wish(pid: i32) -> io::Result<()> {
    exec::hang_up(pid)
}

/// How reloads of this process went.
#[derive(Default, Debug)]
pub struct Reloads {
    /// Those that were done.
    pub done: AtomicU64,
    /// Those that were refused.
    pub refused: AtomicU64,
    /// How long the last pause was, microseconds; 0 before the first.
    pub pause_us: AtomicU64,
    /// Why the last one was refused; `None` when it was done, or there was none.
    reason: Mutex<Option<String>>,
}

impl Reloads {
    /// One was refused.
    pub fn refuse(&self, reason: &str) {
        *self.reason() = Some(reason.to_owned());
        self.refused.fetch_add(1, Relaxed);
    }

    /// Why the last one was refused, if it was.
    pub fn last_refusal(&self) -> Option<String> {
        self.reason().clone()
    }

    fn reason(&self) -> MutexGuard<'_, Option<String>> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the process goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The new program or configuration is bad, and says so.
    #[error("the new program refuses: {0}")]
    Check(String),
    /// It cannot even be started.
    #[error("{0}: {1}")]
    Program(String, io::Error),
    /// It is to stop, closing connections over this time.
    #[error("the server is to stop")]
    Stop(Duration),
    /// The engine finds no rest.
    #[error(transparent)]
    Engine(#[from] engine::NotFrozen),
    /// The kernel refuses.
    #[error("the process cannot be replaced: {0}")]
    System(#[from] io::Error),
}

/// What the control plane hands on to itself. A field may be appended with a default.
#[derive(Default, Serialize, Deserialize)]
pub struct Program {
    /// Descriptor of the program that writes this.
    pub(crate) old_program: RawFd,
    /// The descriptor on which the control plane listens, and where that is.
    pub control: Option<(RawFd, String)>,
    /// The configuration file as it was read.
    pub(crate) configuration: Option<String>,
    /// When the pause began, when all was at rest and written down, and when this process was about to be replaced, see [`now_ns`].
    pub(crate) paused_ns: u64,
    pub(crate) frozen_ns: u64,
    pub(crate) replaced_ns: u64,
    /// Reloads that were refused.
    pub refused: u64,
    /// Where the events have come to.
    #[serde(default)]
    pub events: Option<Past>,
    /// True exactly when the service manager holds queues of this process.
    #[serde(default)]
    pub has_store: bool,
    /// What the secrets of `--dev` are made of.
    #[serde(default)]
    pub dev_seed: Option<String>,
}

/// How this process was started, for as long as it lives.
#[derive(Debug)]
pub struct Own {
    /// Where the program is, whatever stands there later.
    program: PathBuf,
    arguments: Vec<OsString>,
    /// The configuration file as it was read.
    pub configuration: Option<String>,
}

impl Own {
    /// To be asked before somebody puts another program in this one's place.
    pub fn new(configuration: Option<String>) -> io::Result<Own> {
        Ok(Own { program: std::env::current_exe()?, arguments: std::env::args_os().collect(), configuration })
    }

    /// Has the program that is there now say whether it can take over, as a child with the same arguments.
    ///
    /// # Errors
    /// When it cannot, with its reasons.
    pub fn check(&self) -> Result<(), Refused> {
        let fault = |fault| Refused::Program(self.program.display().to_string(), fault);
        let (ours, theirs) = UnixStream::pair().map_err(fault)?;
        ours.set_nonblocking(true).map_err(fault)?;
        let mut child = Command::new(&self.program)
            .args(self.arguments.iter().skip(1))
            .arg("check-config")
            .arg(format!("--takes-state={VERSION}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(OwnedFd::from(theirs))
            .spawn()
            .map_err(fault)?;
        let (status, said) = outcome(&mut child, ours).map_err(fault)?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) if said.is_empty() => Err(Refused::Check(format!("it ended with {status}"))),
            Some(_) => Err(Refused::Check(said)),
            None => Err(Refused::Check(format!("it did not end within {} s", CHECK_TIME.as_secs()))),
        }
    }

    /// Replaces the process. `frozen` is what the engine has at rest; `control` the control plane's listener. It returns only when that fails, and then everything is as before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn replace(&self, mut frozen: Frozen, program: Program) -> Result<Infallible, Refused> {
        let old_program = exec::own_program()?;
        let control = program.control.as_ref().map(|(fd, _)| *fd);
        let configuration = self.configuration.clone();
        let program = Program { old_program: exec::number(&old_program), configuration, replaced_ns: now_ns(), ..program };
        frozen.program = serde_json::to_vec(&program).map_err(io::Error::other)?.into();
        let mut state = io::BufWriter::new(exec::memory_file()?);
        frozen.write(&mut state)?;
        let state = state.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut open: Vec<RawFd> = frozen.listeners.iter().copied().chain(control).collect();
        open.extend([exec::number(&old_program), exec::number(&state)]);
        let call = exec::Call::new(self.arguments.clone(), environment(exec::number(&state), None))?;
        let path = CString::new(self.program.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let kept = exec::KeptOpen::new(open);
        let outcome = exec::replace(&path, &call);
        drop(kept);
        Ok(outcome?)
    }
}

/// Waits for a child; `None` for one that did not end in time and was ended. What it said on its standard error, too.
fn outcome(child: &mut Child, mut stderr: UnixStream) -> io::Result<(Option<ExitStatus>, String)> {
    let until = Instant::now() + CHECK_TIME;
    let mut said = Vec::new();
    let status = loop {
        let status = child.try_wait()?;
        hear(&mut stderr, &mut said);
        match status {
            Some(status) => break Some(status),
            None if Instant::now() >= until => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    Ok((status, String::from_utf8_lossy(&said).trim().replace('\n', "; ")))
}

/// What has been said until now. Its end is not waited for: whoever the child has started may have the other end for as long as he likes, and may say what he likes.
fn hear(stderr: &mut UnixStream, said: &mut Vec<u8>) {
    let _ = stderr.take(SAID_BYTES_MAX.saturating_sub(said.len() as u64)).read_to_end(said);
}

/// This process's environment for the next program.
fn environment(state: RawFd, returned: Option<&str>) -> Vec<OsString> {
    let is_passed_on = |name: &OsString| !OWN_VARIABLES.iter().chain(&ACTIVATION).any(|own| *name == **own);
    let pair = |name: &OsString, value: &OsString| OsString::from_vec([name.as_bytes(), b"=", value.as_bytes()].concat());
    let passed = std::env::vars_os().filter(|(name, _)| is_passed_on(name)).map(|(name, value)| pair(&name, &value));
    let state = Some(format!("{STATE}={state}").into());
    passed.chain(state).chain(returned.map(|reason| format!("{RETURNED}={reason}").into())).collect()
}

/// What a former program has left to this one.
pub struct Inherited {
    /// When this program was found to be the next, see [`now_ns`].
    begun_ns: u64,
    state: OwnedFd,
    frozen: Option<Frozen>,
    /// The control plane's own.
    pub program: Program,
    /// Why the newer program has given the process back, if it has.
    pub returned: Option<String>,
}

impl fmt::Debug for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inherited").field("returned", &self.returned).finish_non_exhaustive()
    }
}

impl Inherited {
    /// What the environment names; `None` when this is a start like any other.
    ///
    /// # Errors
    /// When there is something that cannot be read. Then nobody can go on: not even the way back is known.
    pub fn find() -> Result<Option<Inherited>, io::Error> {
        let begun_ns = now_ns();
        let Some(named) = std::env::var_os(STATE) else { return Ok(None) };
        let number =
            named.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| io::Error::other(format!("{STATE} is no descriptor")))?;
        let mut state = std::fs::File::from(exec::inherited(number)?);
        state.rewind()?;
        let mut bytes = Vec::new();
        state.read_to_end(&mut bytes)?;
        let frozen = Frozen::decode(&bytes).map_err(io::Error::other)?;
        let program = serde_json::from_slice(&frozen.program).map_err(io::Error::other)?;
        let returned = std::env::var_os(RETURNED).map(|reason| reason.to_string_lossy().into_owned());
        Ok(Some(Inherited { begun_ns, state: state.into(), frozen: Some(frozen), program, returned }))
    }

    /// The configuration file to be used instead of the one that is there: what this program had before a newer one could not take over.
    pub fn configuration(&self) -> Option<&str> {
        self.program.configuration.as_deref().filter(|_| self.returned.is_some())
    }

    /// What the secrets of `--dev` were made of.
    pub fn dev_seed(&self) -> Option<Secret> {
        self.program.dev_seed.as_ref().and_then(|seed| Secret::new(seed.as_bytes()).ok())
    }

    /// The control plane's listener, if it is for this place: a descriptor of its own, so that the other is still open should there have to be a way back.
    pub fn listener(&self, place: &str) -> Option<OwnedFd> {
        let (fd, _) = self.program.control.as_ref().filter(|(_, former)| former == place)?;
        exec::copy(*fd).ok()
    }

    /// The engine's part, once. Where the process was given back it has not been reloaded.
    pub fn take_frozen(&mut self) -> Option<Frozen> {
        let mut frozen = self.frozen.take()?;
        frozen.generation -= u64::from(self.returned.is_some()).min(frozen.generation);
        Some(frozen)
    }

    /// Gives the process back to the program that it was before. It returns only when that is not possible: when this is that program, or the kernel refuses.
    pub fn go_back(&self, reason: &str) -> io::Error {
        if self.returned.is_some() {
            return io::Error::other("there is no way back from the way back");
        }
        // A reason may be long, and an environment must not be.
        let reason: String = reason.chars().map(|it| if it.is_control() { ' ' } else { it }).take(1_000).collect();
        let number = exec::number(&self.state);
        let call = match exec::Call::new(std::env::args_os().collect(), environment(number, Some(&reason))) {
            Ok(call) => call,
            Err(fault) => return fault,
        };
        let _kept = exec::KeptOpen::new(vec![number, self.program.old_program]);
        match exec::replace_by(self.program.old_program, &call) {
            Ok(never) => match never {},
            Err(fault) => fault,
        }
    }

    /// Everything is taken over: the former program is needed no longer. How long the pause was, and its parts.
    pub fn settle(self) -> (Duration, String) {
        drop(exec::inherited(self.program.old_program));
        drop(self.program.control.map(|(fd, _)| exec::inherited(fd)));
        drop(self.state);
        let Program { paused_ns, frozen_ns, replaced_ns, .. } = self.program;
        let now_ns = now_ns();
        let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        let parts = format!(
            "rest and freeze {:.1}, events {:.1}, writing and execve {:.1}, start and thaw {:.1}",
            ms(paused_ns, frozen_ns),
            ms(frozen_ns, replaced_ns),
            ms(replaced_ns, self.begun_ns),
            ms(self.begun_ns, now_ns)
        );
        (Duration::from_nanos(now_ns.saturating_sub(paused_ns)), parts)
    }
}

/// Whether a state of this version can be taken over.
///
/// # Errors
/// When it cannot.
pub fn takes(version: u32) -> Result<(), NotThawed> {
    if (engine::shard::frozen::OLDEST..=VERSION).contains(&version) { Ok(()) } else { Err(NotThawed::Version(version)) }
}
