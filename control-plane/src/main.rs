//! The binary `uringcast`: reads what was said and hands over to whoever does it.

use std::process::ExitCode;

use clap::Parser as _;
use control_plane::cli::{self, Cli};
use control_plane::reload::Inherited;
use control_plane::serve;
use control_plane::settings::{Flags, Problems, Settings};

// A sanitizer sees only what the system's allocator hands out.
#[cfg(not(sanitized))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // First, because what is allocated before keeps its own.
    engine::without_huge_pages();
    let cli = Cli::parse();
    let (flags, environment) = (cli.flags(), cli::environment());
    if let Some(command) = &cli.command {
        return cli::perform(command, &flags, &environment);
    }
    let inherited = match Inherited::find() {
        Ok(inherited) => inherited,
        Err(fault) => return cli::refuse(&Problems::of("what the former process has left", fault.to_string())),
    };
    let configuration = inherited.as_ref().and_then(Inherited::configuration).map(str::to_owned);
    let dev_seed = inherited.as_ref().and_then(Inherited::dev_seed);
    let flags = Flags { configuration, dev_seed, ..flags };
    let settings = match cli.test_profile {
        Some(profile) => profile.settings(&flags),
        None => Settings::load(&flags, &environment),
    };
    match settings {
        Ok(settings) => {
            cli::warn(&settings.warnings);
            serve::run(settings, inherited)
        }
        Err(problems) => {
            if let Some(inherited) = &inherited {
                let fault = inherited.go_back(&problems.to_string());
                cli::warn(&[format!("and there is no way back: {fault}")]);
            }
            cli::refuse(&problems)
        }
    }
}
