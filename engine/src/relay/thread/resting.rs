//! How the relay's thread comes to rest before a reload, is written down, and goes on. While it rests, what Redis says by itself is kept for whoever goes on: this thread or that of
//! the process that this one becomes.

use crossbeam_channel::Sender;
use tokio::sync::mpsc;

use super::Thread;
use crate::driver::Order;
use crate::relay::request::Push;

/// What the relay says to an order.
#[derive(Debug)]
pub(crate) enum Report {
    /// True exactly when nothing is under way, nothing has come from shards or gone to them since it was asked last, and Redis has been told everything.
    Rests(bool),
    /// What there is.
    Frozen(Vec<u8>),
}

/// Where it is told what to do, and says what it has to say.
#[derive(Debug)]
pub(crate) struct Resting {
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) reports: Sender<Report>,
}

impl Thread {
    /// Does what it is told; once nothing is under way, nothing but that.
    pub(super) async fn rest(&mut self, first: Order) {
        let mut order = first;
        loop {
            let report = match order {
                Order::Round { is_last } => Report::Rests(self.round(is_last)),
                Order::Freeze => Report::Frozen(self.freeze()),
                Order::Resume => return self.go_on(),
            };
            let is_over = matches!(report, Report::Rests(false));
            if self.resting.reports.try_send(report).is_err() || is_over {
                // Nobody has heard it, or it has still something to do.
                return;
            }
            match self.resting.orders.recv().await {
                Some(next) => order = next,
                // Whoever gave orders is gone.
                None => return self.go_on(),
            }
        }
    }

    fn round(&mut self, is_last: bool) -> bool {
        self.core.set_resting(true);
        while let Ok(order) = self.core.port().orders.try_recv() {
            let now = self.now();
            self.core.handle_order(now, order);
        }
        if let Some(batch) = self.inlet.try_recv() {
            self.take_outwards(batch);
        }
        if let Ok((tag, replies)) = self.replies.1.try_recv() {
            self.take_reply(tag, replies);
        }
        if is_last {
            let now = self.now();
            self.core.wait_no_longer(now);
        }
        let are_sent = self.send();
        let has_moved = std::mem::replace(&mut self.has_moved_parcels, false);
        let is_told = is_last || (self.core.is_told() && (self.asked == 0 || !self.core.is_up));
        are_sent && !has_moved && is_told && self.core.is_at_rest()
    }

    fn freeze(&mut self) -> Vec<u8> {
        while let Some(push) = self.link.as_mut().and_then(|(_, pushes)| pushes.try_next()) {
            self.heard.push_back(push);
        }
        self.core.freeze(&self.settings, self.heard.iter()).encode()
    }

    /// There is no other process, or this is it and everybody is there.
    fn go_on(&mut self) {
        self.core.set_resting(false);
        self.may_leave = true;
        let now = self.now();
        while let Some(push) = self.heard.pop_front() {
            let is_end = matches!(push, Push::Gone(_));
            self.take_push(now, Some(push));
            if is_end {
                break;
            }
        }
    }
}
