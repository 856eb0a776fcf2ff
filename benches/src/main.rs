//! `benches`: a load generator that measures a running server from outside, over real sockets and /proc. It shares no code with the
//! engine, so that neither hides the other's mistakes; only `counts`, which is no load, calls it. How to run it and how to read it:
//! benches/README.md.

mod board;
mod capacity;
mod client;
mod compare;
mod counts;
mod dialect;
mod frame;
mod histogram;
mod model;
mod net;
mod options;
mod report;
mod run;
mod scenario;
mod server;
#[cfg(test)]
mod tests;
mod token;
mod verify;
mod worker;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

/// The command line made no sense (EX_USAGE).
const MISUSED: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("compare", rest)) => return compare(rest),
        Some(("counts", rest)) => return counts(rest),
        Some(("capacity", rest)) => return capacity(rest),
        Some(("model", rest)) => return model(rest),
        Some((capacity::part::NAME, rest)) => return part_of_capacity(rest),
        _ => {}
    }
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        eprint!("{}", options::USAGE);
        return ExitCode::SUCCESS;
    }
    let options = match options::Options::parse(&arguments) {
        Ok(options) => options,
        Err(mistake) => {
            eprintln!("benches: {mistake}\n\n{}", options::USAGE);
            return ExitCode::from(MISUSED);
        }
    };
    // The coordinator too stays away from the server's cores.
    if let Err(error) = net::pin(&options.cpus) {
        eprintln!("benches: cannot run on cores {:?}: {error}", options.cpus);
        return ExitCode::FAILURE;
    }
    match run::run(&options).and_then(|result| publish(&result, &report::line(&result), options.json.as_deref()).map(|()| result)) {
        Ok(result) if report::is_clean(&result) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("benches: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The command `compare`: our server beside others.
fn compare(arguments: &[String]) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        eprint!("{}", compare::command::USAGE);
        return ExitCode::SUCCESS;
    }
    let command = match compare::command::Command::parse(arguments) {
        Ok(command) => command,
        Err(mistake) => {
            eprintln!("benches compare: {mistake}\n\n{}", compare::command::USAGE);
            return ExitCode::from(MISUSED);
        }
    };
    match compare::compare(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("benches compare: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The command `counts`: instructions of the engine's pure layers.
fn counts(arguments: &[String]) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        eprint!("{}", counts::USAGE);
        return ExitCode::SUCCESS;
    }
    let command = match counts::Command::parse(arguments) {
        Ok(command) => command,
        Err(mistake) => {
            eprintln!("benches counts: {mistake}\n\n{}", counts::USAGE);
            return ExitCode::from(MISUSED);
        }
    };
    match counts::counts(&command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("benches counts: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The command `capacity`: many idle connections.
fn capacity(arguments: &[String]) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        eprint!("{}", capacity::command::USAGE);
        return ExitCode::SUCCESS;
    }
    let command = match capacity::command::Command::parse(arguments) {
        Ok(command) => command,
        Err(mistake) => {
            eprintln!("benches capacity: {mistake}\n\n{}", capacity::command::USAGE);
            return ExitCode::from(MISUSED);
        }
    };
    let result = capacity::capacity(&command);
    match result.and_then(|result| publish(&result, &capacity::line(&result), command.json.as_deref()).map(|()| result)) {
        Ok(result) if report::is_clean(&result) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("benches capacity: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// The command `model`: tables, computed.
fn model(arguments: &[String]) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        eprint!("{}", model::USAGE);
        return ExitCode::SUCCESS;
    }
    let page = match model::model(arguments) {
        Ok(page) => page,
        Err(mistake) => {
            eprintln!("benches model: {mistake}\n\n{}", model::USAGE);
            return ExitCode::from(MISUSED);
        }
    };
    match io::stdout().write_all(page.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches model: stdout: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One generator process of `capacity`.
fn part_of_capacity(arguments: &[String]) -> ExitCode {
    match capacity::part::answer_words(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("benches {}: {reason}", capacity::part::NAME);
            ExitCode::FAILURE
        }
    }
}

/// The JSON line goes to stdout and the file, the human one to stderr.
fn publish(result: &Value, human: &str, file: Option<&Path>) -> Result<(), String> {
    eprintln!("{human}");
    let line = format!("{result}\n");
    io::stdout().write_all(line.as_bytes()).map_err(|error| format!("stdout: {error}"))?;
    let Some(file) = file else { return Ok(()) };
    let appended = OpenOptions::new().create(true).append(true).open(file).and_then(|mut file| file.write_all(line.as_bytes()));
    appended.map_err(|error| format!("{}: {error}", file.display()))
}
