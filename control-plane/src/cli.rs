//! The command line: what can be said, and the commands that start no server. Values of settings stay text here; `settings` reads
//! them, so that a bad one is told in the same words wherever it came from.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::operator::{self, Operation};
use crate::pages;
use crate::reload;
use crate::secret::Secret;
use crate::settings::{Environment, Flags, Problems, Settings, TestProfile, print};
use crate::token::{Claims, lifetime};

/// Serves WebSocket and Socket.IO clients. Without a command it starts the server.
#[derive(Parser, Debug)]
#[command(name = "uringcast", version, after_help = operator::EXIT_STATUSES)]
pub struct Cli {
    #[command(flatten)]
    settings: SettingFlags,
    /// Serve what protocol conformance suites expect instead of what is configured.
    #[arg(long, hide = true, value_enum, value_name = "PROFILE", conflicts_with_all = ["config", "redis"])]
    pub test_profile: Option<TestProfile>,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags that are settings; each wins over its variable and the file.
#[derive(Args, Clone, Debug)]
struct SettingFlags {
    /// Configuration file (TOML); `uringcast print-config` shows what can be in it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address that clients connect to [default: 0.0.0.0:3000].
    #[arg(long, global = true, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Address of health, metrics and admin API, also unix:/PATH [default: 127.0.0.1:9464].
    #[arg(long, global = true, value_name = "IP:PORT")]
    control: Option<String>,
    /// Number of shards, the threads that serve connections [default: one per CPU].
    #[arg(long, global = true, value_name = "N")]
    shards: Option<String>,
    /// Redis that joins several hosts.
    #[arg(long, global = true, value_name = "URL")]
    redis: Option<String>,
    /// Try it out: generated secrets, open rooms, everything on 127.0.0.1.
    #[arg(long, global = true)]
    dev: bool,
}

/// Commands that start no server.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// What needs no server.
    #[command(flatten)]
    Alone(Alone),
    /// What is asked of a running one.
    #[command(flatten)]
    Operate(Operation),
    /// Write the man pages and the shell completions into a folder, for a package.
    #[command(hide = true)]
    Pages {
        /// It is made if it is not there.
        folder: PathBuf,
    },
}

/// Commands that need no server.
#[derive(Subcommand, Debug)]
pub enum Alone {
    /// Print a token for trying out, signed with the server's secret.
    Token(TokenArgs),
    /// Say what is wrong with the settings, or ok, without starting.
    CheckConfig {
        /// Say also whether a running server's state of this version could be taken over.
        #[arg(long, hide = true, value_name = "VERSION")]
        takes_state: Option<u32>,
    },
    /// Print every setting with its unit, default, meaning and the value in force, as a configuration file.
    PrintConfig,
}

/// What the token shall say.
#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// User id.
    #[arg(long, value_parser = user_id)]
    sub: String,
    /// Rooms the user may enter; an empty list allows none.
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    rooms: Option<Vec<String>>,
    /// Groups the user may enter.
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    groups: Option<Vec<String>>,
    /// Documents the user may enter.
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    documents: Option<Vec<String>>,
    /// Name that others see.
    #[arg(long)]
    name: Option<String>,
    /// Email address.
    #[arg(long)]
    email: Option<String>,
    /// How long it is valid: 90s, 30m, 12h, 7d.
    #[arg(long, default_value = "1h", value_parser = lifetime)]
    expires_in: Duration,
    /// File with the secret to sign with, instead of the server's settings.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

fn user_id(text: &str) -> Result<String, engine::ids::BadName> {
    engine::ids::checked_name(text).map(str::to_owned)
}

impl Cli {
    /// What was said about settings.
    pub fn flags(&self) -> Flags {
        let said = self.settings.clone();
        Flags {
            config: said.config,
            listen: said.listen,
            control: said.control,
            shards: said.shards,
            redis: said.redis,
            dev: said.dev,
            configuration: None,
            dev_seed: None,
        }
    }
}

impl TokenArgs {
    fn claims(&self) -> Claims {
        // A list given as '' is a list without elements, not with an empty one.
        let list = |list: &Option<Vec<String>>| list.as_ref().map(|items| items.iter().filter(|item| !item.is_empty()).cloned().collect());
        Claims {
            sub: self.sub.clone(),
            name: self.name.clone(),
            email: self.email.clone(),
            rooms: list(&self.rooms),
            groups: list(&self.groups),
            documents: list(&self.documents),
        }
    }

    fn sign(&self, secret: &Secret) -> Result<String, engine::auth::MintFault> {
        self.claims().sign(secret, self.expires_in)
    }
}

/// This process's environment. A variable that is no UTF-8 keeps its name and gets a value that no setting takes as it was meant.
pub fn environment() -> Environment {
    let all = std::env::vars_os().filter(|(name, _)| !reload::OWN_VARIABLES.iter().any(|own| *name == **own));
    all.map(|(name, text)| (name.to_string_lossy().into_owned(), text.to_string_lossy().into_owned())).collect()
}

/// Performs a command and writes its answer to the standard output.
pub fn perform(command: &Command, flags: &Flags, environment: &Environment) -> ExitCode {
    let command = match command {
        Command::Operate(operation) => return operator::perform(operation, flags, environment),
        Command::Pages { folder } => return written(folder),
        Command::Alone(command) => command,
    };
    match answer(command, flags, environment) {
        // A reader that went away (`print-config | head`) has seen what it wanted.
        Ok(text) => io::stdout().write_all(text.as_bytes()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
        Err(problems) => refuse(&problems),
    }
}

/// Writes the problems to the standard error; the exit status that says so.
pub fn refuse(problems: &Problems) -> ExitCode {
    let _ = write!(io::stderr(), "{problems}");
    ExitCode::from(Problems::EXIT_STATUS)
}

/// Writes warnings to the standard error, a line each.
pub fn warn(warnings: &[String]) {
    for warning in warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
}

fn written(folder: &Path) -> ExitCode {
    let Err(fault) = pages::write(folder) else { return ExitCode::SUCCESS };
    let _ = writeln!(io::stderr(), "{}: {fault}", folder.display());
    ExitCode::FAILURE
}

fn answer(command: &Alone, flags: &Flags, environment: &Environment) -> Result<String, Problems> {
    match command {
        Alone::PrintConfig => print(flags, environment),
        Alone::CheckConfig { takes_state } => {
            if let Some(fault) = takes_state.and_then(|version| reload::takes(version).err()) {
                return Err(Problems::of("--takes-state", fault.to_string()));
            }
            warn(&Settings::load(flags, environment)?.warnings);
            Ok("ok\n".to_owned())
        }
        Alone::Token(args) => {
            let secret = Settings::signing_secret(flags, environment, args.secret_file.as_deref())?;
            Ok(args.sign(&secret).expect("claims are an object") + "\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn environment() -> Environment {
        Environment::from([("JWT_SECRET".to_owned(), "a secret for tests only".to_owned())])
    }

    fn run(arguments: &[&str], environment: &Environment) -> Result<String, Problems> {
        let cli = Cli::try_parse_from([&["uringcast"], arguments].concat()).expect("a good command line");
        let Some(Command::Alone(command)) = &cli.command else { panic!("a command that needs no server") };
        answer(command, &cli.flags(), environment)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_stand_before_and_behind_the_command() {
        for arguments in
            [["uringcast", "--listen", "127.0.0.1:1", "check-config"], ["uringcast", "check-config", "--listen", "127.0.0.1:1"]]
        {
            let cli = Cli::try_parse_from(arguments).expect("a good command line");
            assert_eq!(cli.flags().listen.as_deref(), Some("127.0.0.1:1"));
        }
        let cli = Cli::try_parse_from(["uringcast", "--dev", "--shards", "lots"]).expect("values are read later");
        assert!(cli.command.is_none() && cli.flags().dev);
    }

    #[test]
    fn a_token_is_all_that_is_printed() {
        let token =
            run(&["token", "--sub", "alice", "--rooms", "a,b", "--groups", "", "--expires-in", "5m"], &environment()).expect("a token");
        assert!(token.ends_with('\n') && token.matches('.').count() == 2 && token.lines().count() == 1);
        let verifier = engine::auth::Verifier::new(engine::auth::Key::Hs256(b"a secret for tests only".to_vec())).expect("a secret");
        let identity = verifier.verify(token.trim_end(), 0).expect("a good token").details();
        assert_eq!((identity.rooms, identity.groups), (Some(vec!["a".to_owned(), "b".to_owned()]), Some(vec![])));
    }

    #[test]
    fn a_token_needs_a_secret_and_a_user() {
        let problems = run(&["token", "--sub", "alice"], &Environment::new()).expect_err("no secret");
        assert!(problems.to_string().contains("JWT_SECRET"), "{problems}");
        let file = crate::settings::scratch::Scratch::file("another secret\n");
        let path = file.path().to_str().expect("UTF-8");
        assert!(run(&["token", "--sub", "alice", "--secret-file", path], &Environment::new()).is_ok());
        assert!(run(&["token", "--sub", "alice", "--secret-file", "/nonexistent"], &environment()).is_err());
        for bad in [
            vec!["uringcast", "token"],
            vec!["uringcast", "token", "--sub", ""],
            vec!["uringcast", "token", "--sub", "a", "--expires-in", "1"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err());
        }
    }

    #[test]
    fn check_config_says_ok_or_the_problems() {
        assert_eq!(run(&["check-config"], &environment()).as_deref(), Ok("ok\n"));
        assert!(run(&["check-config", "--shards", "0"], &environment()).is_err());
    }
}
