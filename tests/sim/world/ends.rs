//! How a server comes and goes: starts that are cut short, stops, kills, power cuts.

use std::time::Duration;

use super::{STEPS_MAX, World};
use crate::start::Cut;
use crate::upload::Upload;

impl World {
    /// It goes on where it was, unless it is cut short.
    pub(super) fn start_server(&mut self) {
        if self.starts_at > self.now {
            return;
        }
        let calls_left = self.chaos.poll_cut(&mut self.rng);
        let kernel = &mut self.kernel;
        match self.server.start(self.now, kernel, calls_left, &mut self.rng) {
            Ok(recovery) => {
                for upload in self.uploads.iter_mut().filter(|it| it.ticket.is_some()) {
                    upload.check_recovered(&recovery, &self.kernel.disk);
                }
            }
            Err(Cut::Short) => {
                let is_power_cut = self.rng.chance(50);
                self.end_server(is_power_cut);
            }
            Err(Cut::Refused(_)) => {
                self.end_server(false);
                self.starts_at = self.now + START_AGAIN_AFTER;
            }
        }
    }

    /// The server is told to stop, and nothing is left of it but files.
    pub(super) fn stop(&mut self) {
        self.server.ask_to_stop();
        self.cut_off_web_apps();
        for pipe in &mut self.kernel.pipes {
            // Some browsers stay to the end, some are gone.
            if self.rng.chance(50) {
                pipe.reset();
            }
        }
        for _ in 0..STEPS_MAX {
            if self.server.has_stopped() {
                break;
            }
            match self.rng.below(10) {
                0..6 => self.server_step(),
                6..9 => self.link_step(),
                _ => {
                    self.sleep();
                    self.now += Duration::from_millis(100);
                }
            }
            self.tick();
        }
        self.server.check_end(&self.kernel);
        self.kernel.disk.kill();
        self.leave_server();
    }

    /// The server is gone at once, in the middle of whatever it did.
    pub(super) fn end_server(&mut self, is_power_cut: bool) {
        if is_power_cut {
            self.kernel.disk.power_cut();
            self.uploads.iter_mut().for_each(Upload::on_power_cut);
        } else {
            self.kernel.disk.kill();
        }
        self.cut_off_web_apps();
        self.leave_server();
    }

    /// There is no process any more, and so no connection.
    fn leave_server(&mut self) {
        self.server.cores.clear();
        for upload in &mut self.uploads {
            // Perhaps it had not recorded it yet.
            upload.was_cut_off |= std::mem::take(&mut upload.is_done_heard);
        }
        for pipe in &mut self.kernel.pipes {
            pipe.reset();
        }
    }

    /// They do not learn what became of their requests.
    fn cut_off_web_apps(&mut self) {
        for call in self.calls.drain(..) {
            self.uploads[call.upload].was_cut_off = true;
        }
    }
}

const START_AGAIN_AFTER: Duration = Duration::from_secs(1);
