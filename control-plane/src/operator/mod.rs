//! `uringcast` as the operator's tool: commands that ask a running server over the admin API and show what it answers, to people as tables
//! and to scripts as the API's JSON. It finds the server as the server's own settings say ([`crate::settings::Access`]), and knows nothing
//! of it beyond the API.
//!
//! | exit status | means |
//! |---|---|
//! | 0 | done |
//! | 1 | the server refused it, or there is no such thing |
//! | 2 | the command line is wrong |
//! | 69 | the server cannot be reached, or what answers there is none of ours |
//! | 75 | a part of the server, or another one of its fleet, did not answer in time: what is shown is incomplete, what was asked for may be done in part |
//! | 77 | the admin token is missing or wrong |
//! | 78 | the settings are wrong |

mod client;
mod commands;
mod table;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{ArgGroup, Args, Subcommand};

use crate::settings::{Access, Environment, Flags, Problems};
use client::{Client, Fault};

/// What `--help` ends with.
pub const EXIT_STATUSES: &str = "Exit status: 0 done, 1 refused or not there, 2 wrong command line, 69 no server reached, \
                                 75 a part of the server did not answer, 77 admin token missing or wrong, 78 wrong settings.";

/// Commands for a running server.
#[derive(Subcommand, Debug)]
pub enum Operation {
    /// Show the numbers of a running server, or of one endpoint.
    Stats {
        /// Only of the endpoint with this name.
        #[arg(long, value_name = "NAME")]
        endpoint: Option<String>,
        /// How it is shown.
        #[command(flatten)]
        output: Output,
    },
    /// List who is connected.
    Connections {
        /// Only to the endpoint with this name.
        #[arg(long, value_name = "NAME")]
        endpoint: Option<String>,
        /// Only of this user.
        #[arg(long, value_name = "ID")]
        user: Option<String>,
        /// Only those in this room.
        #[arg(long, value_name = "ID")]
        room: Option<String>,
        /// How much of it.
        #[command(flatten)]
        amount: Amount,
        /// How it is shown.
        #[command(flatten)]
        output: Output,
    },
    /// Close all connections of a user, or one connection.
    #[command(subcommand)]
    Kick(Kicked),
    /// List rooms, or show one.
    #[command(args_conflicts_with_subcommands = true)]
    Rooms(RoomsArgs),
    /// Send an event to connections.
    Emit(EmitArgs),
    /// List the servers of the fleet: those that share the Redis with this one.
    Hosts {
        /// How it is shown.
        #[command(flatten)]
        output: Output,
    },
    /// Have the server take up its configuration and the program that is installed now, keeping all connections; as SIGHUP does.
    Reload {
        /// How it is shown.
        #[command(flatten)]
        output: Output,
    },
    /// The same, by the name that says what it is for after another version was installed.
    Upgrade {
        /// How it is shown.
        #[command(flatten)]
        output: Output,
    },
    /// Let no more clients in, close all connections bit by bit and stop, as SIGTERM does.
    Drain {
        /// Over how long; if it is not said, as each server's settings say.
        #[arg(long, value_name = "N")]
        seconds: Option<u32>,
        /// All servers of the fleet, and not only the one that is asked.
        #[arg(long, conflicts_with = "host")]
        all_hosts: bool,
        /// The server with this id (see `hosts`) instead of the one that is asked; can be given several times.
        #[arg(long, value_name = "ID")]
        host: Vec<String>,
        /// How it is shown.
        #[command(flatten)]
        output: Output,
    },
}

/// How it is shown.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// Print the JSON of the admin API instead of a table.
    #[arg(long)]
    json: bool,
}

/// How much of a list is shown.
#[derive(Args, Clone, Copy, Debug)]
pub struct Amount {
    /// How many at most.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// All there are.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

/// Whose connections are closed.
#[derive(Subcommand, Debug)]
pub enum Kicked {
    /// All connections of a user.
    User(KickArgs),
    /// One connection.
    Connection(KickArgs),
}

/// Which one, and why.
#[derive(Args, Debug)]
pub struct KickArgs {
    /// Its id.
    id: String,
    /// What the client is told.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Which rooms.
#[derive(Args, Debug)]
pub struct RoomsArgs {
    #[command(subcommand)]
    one: Option<OneRoom>,
    /// Of the endpoint with this name; if it is not said, of the first of `rooms`.
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    /// Only of this namespace.
    #[arg(long)]
    namespace: Option<String>,
    #[command(flatten)]
    amount: Amount,
    #[command(flatten)]
    output: Output,
}

/// What can be done with one room.
#[derive(Subcommand, Debug)]
pub enum OneRoom {
    /// Show one room and who is in it.
    Show {
        /// Its id.
        id: String,
        /// Of the endpoint with this name; if it is not said, of the first of `rooms`.
        #[arg(long, value_name = "NAME")]
        endpoint: Option<String>,
        /// How it is shown.
        #[command(flatten)]
        output: Output,
    },
}

/// What is sent to whom.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("to").required(true))]
pub struct EmitArgs {
    /// Name of the endpoint.
    #[arg(long, value_name = "NAME")]
    endpoint: String,
    /// To every connection of the endpoint.
    #[arg(long, group = "to")]
    all: bool,
    /// To the members of this room; can be given several times.
    #[arg(long, group = "to", value_name = "ID")]
    room: Vec<String>,
    /// To the connections of this user; can be given several times.
    #[arg(long, group = "to", value_name = "ID")]
    user: Vec<String>,
    /// To this connection; can be given several times.
    #[arg(long, group = "to", value_name = "ID")]
    connection: Vec<String>,
    /// But not to this connection, or the members of this room; can be given several times.
    #[arg(long, value_name = "ID")]
    except: Vec<String>,
    /// Rather dropped than made to wait.
    #[arg(long)]
    volatile: bool,
    /// Delivered once however often it is sent with this id within five minutes.
    #[arg(long)]
    id: Option<String>,
    /// Ask for acknowledgements, and count those that come within so many milliseconds.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    ack_timeout: Option<u64>,
    /// Its name.
    event: String,
    /// Its argument: a JSON text, such as '{"text":"hi"}' or '"hi"'; - reads it from the standard input.
    data: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Performs a command; the result is the process's exit status.
pub fn perform(operation: &Operation, flags: &Flags, environment: &Environment) -> ExitCode {
    let access = match Access::find(flags, environment) {
        Ok(access) => access,
        Err(problems) => {
            let _ = write!(io::stderr(), "{problems}");
            return ExitCode::from(Problems::EXIT_STATUS);
        }
    };
    let outcome = Client::new(access).and_then(|client| commands::perform(operation, &client, &mut io::stdout().lock()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Who went away (`connections --all | head`) has seen what was wanted.
        Err(Fault::Output(fault)) if fault.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(fault) => {
            let _ = writeln!(io::stderr(), "uringcast: {}", table::safe(&fault.to_string()));
            ExitCode::from(fault.exit_status())
        }
    }
}
