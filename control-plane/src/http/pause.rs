//! A pause of everything that speaks HTTP, while the process is being replaced: nobody new is let in (the kernel keeps who comes), what was begun is answered, and
//! connections that are kept are closed after their answer, as HTTP allows at any time. It ends when the process goes on after all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// Whether there is one, and who is still being served.
#[derive(Debug)]
pub struct Pause {
    is_on: watch::Sender<bool>,
    open: AtomicUsize,
}

impl Default for Pause {
    fn default() -> Pause {
        Pause { is_on: watch::channel(false).0, open: AtomicUsize::new(0) }
    }
}

/// A connection that is being served.
#[derive(Debug)]
pub struct Open(Arc<Pause>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pause {
    /// From now on until [`Self::end`].
    pub fn begin(&self) {
        self.is_on.send_replace(true);
    }

    /// Everybody goes on.
    pub fn end(&self) {
        self.is_on.send_replace(false);
    }

    /// True exactly when nobody is being served.
    pub fn is_quiet(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    /// Counts a connection for as long as the result lives.
    pub fn open(self: &Arc<Pause>) -> Open {
        self.open.fetch_add(1, Ordering::AcqRel);
        Open(self.clone())
    }

    /// Returns when one begins.
    pub async fn begun(&self) {
        // The sender lives as long as we do.
        let _ = self.is_on.subscribe().wait_for(|is_on| *is_on).await;
    }

    /// Returns when there is none.
    pub async fn over(&self) {
        let _ = self.is_on.subscribe().wait_for(|is_on| !*is_on).await;
    }
}
