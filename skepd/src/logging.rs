//! Logs: to journald under systemd, to standard error otherwise.

use crate::config::{Config, LogFormat};
use anyhow::{Context, Result};
use std::io::IsTerminal;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// # Errors
/// If the filter does not parse or journald was asked for and is not there.
pub fn init(config: &Config) -> Result<()> {
    // The libraries' own chatter stays out of `debug`; naming a module brings it in. openraft writes an error for each call that a
    // dead manager did not answer, several a second; what matters of it the store says.
    let quiet = "h2=warn,hyper=warn,hyper_util=warn,tower=warn,tonic=warn,rustls=warn,openraft=off,reqwest=warn,netlink_proto=warn";
    let filter = EnvFilter::try_new(format!("{quiet},{}", config.log_level))
        .with_context(|| format!("log_level: {:?} is not a filter", config.log_level))?;
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets it for services whose output goes to the journal (systemd.exec(5)).
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let journald = match config.log_format {
        LogFormat::Journald => true,
        LogFormat::Auto => under_systemd,
        LogFormat::Text => false,
    };
    if journald {
        let layer = tracing_journald::layer().context("log_format: cannot reach journald")?;
        registry.with(layer).init();
    } else {
        registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(true)).init();
    }
    Ok(())
}
