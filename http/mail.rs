//! What cores and the control thread say to each other. Plain data.

use engine::handover::{Answer, Callback};
use engine::op::CoreId;
use engine::ticket::TicketId;

/// A message to a core, or from a core to the control thread.
#[derive(Debug)]
pub enum Mail {
    /// Core to control: make this HTTP request and answer with [`Mail::CallbackAnswer`].
    Callback { from: CoreId, callback: Callback },
    /// Control to the core that asked.
    CallbackAnswer { ticket: TicketId, attempt: u32, answer: Answer },
    /// Server to every core: end what can be ended, then stop.
    Stop,
}
