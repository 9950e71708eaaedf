//! The loop of one core, the same for every runtime: it starts what the machine asks for and brings
//! back what happened.
//!
//! What can be done on the spot is done on the spot; whatever waits is a task of its own, whose
//! completion is a parcel in the [`Hub`]. The loop sleeps until there are parcels, so that all
//! completions of one wake-up reach the machine as one batch. Nothing here ever wakes itself: a
//! task that does keeps monoio from entering the ring.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::Shutdown;

use super::Setup;
use super::alarm::Alarm;
use super::directory::unlock;
use super::helper::{Call, Helper, errno, io_errno, read_at, write_at};
use super::lease::Lease;
use super::mailbox::{Parcel, Receiver, Sender};
use super::slots::Slots;
use super::sockets::{Listeners, recv_now, send_now, set_low_water};
use crate::op::{
    Address, Completion, CoreId, Direction, Errno, Event, FileId, Machine, Op, OpenHow, Output,
    SocketId, Token,
};

/// What a runtime has of its own: waiting, and direct input and output.
pub(super) trait Kernel: Sized + 'static {
    /// Anything that can be polled: sockets, the listener, the mailbox's bell.
    type Socket: AsFd + 'static;
    type File: AsFd + 'static;
    type Sleep: Future<Output = ()> + 'static;

    fn adopt_socket(fd: OwnedFd) -> io::Result<Self::Socket>;
    fn adopt_file(fd: OwnedFd) -> io::Result<Self::File>;
    fn ready(
        socket: Rc<Self::Socket>,
        wait: Wait,
    ) -> impl Future<Output = Result<(), Errno>> + 'static;
    fn spawn(task: impl Future<Output = ()> + 'static);
    fn sleep_until(at: Instant) -> Self::Sleep;
    fn reset(sleep: Pin<&mut Self::Sleep>, at: Instant);

    /// Starts direct input or output, or a sync. Its completion becomes a parcel.
    fn start_io<M: Send + 'static>(
        &self,
        token: Token,
        file: Rc<Self::File>,
        io: FileIo,
        hub: &Rc<Hub<M>>,
    );
}

/// What a socket is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Read,
    Write,
}

/// What the page cache does not do at once.
#[derive(Debug)]
pub(super) enum FileIo {
    Write { lease: Lease, offset_bytes: u64 },
    Read { lease: Lease, offset_bytes: u64 },
    Sync,
}

/// One core: the machine, and what the kernel knows it by.
pub(super) struct Pump<W: Machine, K: Kernel> {
    machine: W,
    kernel: K,
    cores: Vec<Sender<W::Mail>>,
    control: Box<dyn Fn(W::Mail) + Send>,
    helper: Helper,
    hub: Rc<Hub<W::Mail>>,
    /// What waits for mail and for connections is no task: it may still wait when the machine stops,
    /// and monoio keeps tasks that wait, and what they hold.
    mail: Waiting<Infallible>,
    listeners: Listeners<K>,
    /// The machine wants a connection.
    accept: Option<Token>,
    sockets: Slots<K::Socket>,
    files: Vec<Option<File<K>>>,
    /// Completions of what was done on the spot.
    done: Vec<Completion>,
    /// Ops that may use memory of the machine: all but `Accept`.
    in_flight_count: usize,
}

struct File<K: Kernel> {
    file: Rc<K::File>,
    /// Reads and writes may take long: they are not done on the spot.
    waits: bool,
    is_locked: bool,
}

impl<W: Machine, K: Kernel> Pump<W, K> {
    /// In the runtime's context.
    pub(super) fn new(machine: W, kernel: K, setup: Setup<W::Mail>) -> io::Result<Self> {
        let Setup { listeners, mailbox, cores, control, helper, backend: _ } = setup;
        let listeners = Listeners::new(listeners)?;
        let bell = Rc::new(K::adopt_socket(fcntl_dupfd_cloexec(mailbox.bell(), 0)?)?);
        let hub = Rc::new(Hub {
            parcels: RefCell::default(),
            waker: Cell::default(),
            mailbox: mailbox.sender(),
        });
        let mail = Box::pin(take_mail::<K, W::Mail>(bell, mailbox, hub.clone()));
        Ok(Self {
            machine,
            kernel,
            cores,
            control,
            helper,
            hub,
            mail,
            listeners,
            accept: None,
            sockets: Slots::default(),
            files: Vec::new(),
            done: Vec::new(),
            in_flight_count: 0,
        })
    }

    /// Runs the machine until it is stopped and nothing is in flight.
    pub(super) async fn run(mut self) {
        let mut alarm = Alarm::<K>::default();
        let mut batch = Vec::new();
        loop {
            self.start_ops();
            if self.machine.is_stopped() && self.in_flight_count == 0 {
                break self.unlock_files();
            }
            alarm.set(self.machine.poll_timeout());
            poll_fn(|cx| self.poll_parcels(cx, &mut alarm, &mut batch)).await;
            let now = Instant::now();
            for parcel in batch.drain(..) {
                self.deliver(now, parcel);
            }
            if self.machine.poll_timeout().is_some_and(|at| at <= now) {
                self.machine.on_timeout(now);
            }
        }
    }

    /// The runtime closes descriptors when it comes to it; the next run on the same directory may be
    /// in this process, and at once.
    fn unlock_files(&self) {
        self.files.iter().flatten().filter(|it| it.is_locked).for_each(|it| unlock(&*it.file));
    }

    /// Ready when something has happened or the time has come.
    fn poll_parcels(
        &mut self,
        cx: &mut Context<'_>,
        alarm: &mut Alarm<K>,
        batch: &mut Vec<Parcel<W::Mail>>,
    ) -> Poll<()> {
        let Poll::Pending = self.mail.as_mut().poll(cx);
        if let Some(token) = self.accept
            && let Poll::Ready(result) = self.listeners.poll_accept(cx)
        {
            batch.push(Parcel::Accepted { token, result });
            self.accept = None;
        }
        batch.append(&mut self.hub.parcels.borrow_mut());
        if !batch.is_empty() {
            return Poll::Ready(());
        }
        self.hub.waker.set(Some(cx.waker().clone()));
        alarm.poll(cx)
    }

    fn start_ops(&mut self) {
        loop {
            while let Some((token, op)) = self.machine.poll_op() {
                self.start(token, op);
            }
            if self.done.is_empty() {
                break;
            }
            let now = Instant::now();
            for completion in self.done.drain(..) {
                self.machine.on_event(now, Event::Completion(completion));
            }
        }
    }

    fn start(&mut self, token: Token, op: Op<W::Mail>) {
        match op {
            Op::Accept => {
                let before = self.accept.replace(token);
                assert!(before.is_none(), "one Accept at a time");
            }
            Op::CancelAccept => self.accept = None,
            Op::Readable { socket } => {
                let ready = K::ready(self.sockets.at(socket.0).clone(), Wait::Read);
                self.spawn(token, async { ready.await.map(|()| Output::Done) });
            }
            Op::LowWater { socket, bytes } => set_low_water(&**self.sockets.at(socket.0), bytes),
            Op::Recv { socket, length_bytes } => self.receive(token, socket, length_bytes),
            Op::Send { socket, bytes } => self.send(token, socket, bytes),
            Op::Shutdown { socket, how } => {
                let how = match how {
                    Direction::Write => Shutdown::Write,
                    Direction::Both => Shutdown::Both,
                };
                // `ENOTCONN` where the peer was faster.
                let _ = rustix::net::shutdown(self.sockets.at(socket.0), how);
            }
            Op::Close { socket } => drop(self.sockets.remove(socket.0)),
            Op::Migrate { socket, to, mail } => self.migrate(socket, to, mail),
            Op::Post { to: Address::Core(core), mail } => self.cores[core.0 as usize].send(mail),
            Op::Post { to: Address::Control, mail } => (self.control)(mail),

            Op::Open { file, path, how } => {
                self.call(token, Call::Open { file, path, how });
            }
            Op::Write { file, offset_bytes, bytes } => {
                let lease = Lease::new(self.machine.memory(), bytes);
                match self.file(file) {
                    File { waits: true, .. } => {
                        self.start_io(token, file, FileIo::Write { lease, offset_bytes });
                    }
                    File { file, .. } => {
                        let result = write_at(file, lease.bytes(), offset_bytes);
                        self.done.push(Completion { token, result });
                    }
                }
            }
            Op::Read { file, offset_bytes, bytes } => {
                let mut lease = Lease::new(self.machine.memory(), bytes);
                match self.file(file) {
                    File { waits: true, .. } => {
                        self.start_io(token, file, FileIo::Read { lease, offset_bytes });
                    }
                    File { file, .. } => {
                        let result = read_at(file, lease.bytes_mut(), offset_bytes);
                        self.done.push(Completion { token, result });
                    }
                }
            }
            Op::Sync { file } => self.start_io(token, file, FileIo::Sync),
            Op::Allocate { file, offset_bytes, length_bytes } => {
                self.call_file(token, file, |fd| Call::Allocate { fd, offset_bytes, length_bytes });
            }
            Op::Truncate { file, length_bytes } => {
                self.call_file(token, file, |fd| Call::Truncate { fd, length_bytes });
            }
            Op::CloseFile { file } => {
                let closed = self.files[file.0 as usize].take();
                // The runtime closes the descriptor when its ring comes to it, too late for a
                // machine that opens the file again at once.
                if let Some(File { file, is_locked: true, .. }) = &closed {
                    unlock(&**file);
                }
                debug_assert!(closed.is_some(), "{file:?} is not open");
            }
            Op::SetOwner { path, mode, group_gid, owner_uid } => {
                self.call(token, Call::SetOwner { path, mode, group_gid, owner_uid });
            }
            Op::Rename { from, to } => self.call(token, Call::Rename { from, to }),
            Op::Remove { path } => self.call(token, Call::Remove { path }),
            Op::SyncDirectory { path } => self.call(token, Call::SyncDirectory { path }),
            Op::CheckDirectory { path } => self.call(token, Call::CheckDirectory { path }),
            Op::CheckStorage => self.call(token, Call::CheckStorage),
        }
    }

    fn spawn(&mut self, token: Token, op: impl Future<Output = Result<Output, Errno>> + 'static) {
        self.in_flight_count += 1;
        let hub = self.hub.clone();
        K::spawn(async move { hub.complete(token, op.await) });
    }

    /// The completion is handled at once: the next receive may use the same buffer.
    fn receive(&mut self, token: Token, socket: SocketId, length_bytes: u32) {
        let buffer = self.machine.receive_buffer();
        let length = buffer.len().min(length_bytes as usize);
        let result = recv_now(&**self.sockets.at(socket.0), &mut buffer[..length]);
        self.machine.on_event(Instant::now(), Event::Completion(Completion { token, result }));
    }

    fn send(&mut self, token: Token, socket: SocketId, bytes: Bytes) {
        let socket = self.sockets.at(socket.0).clone();
        match send_now(&*socket, &bytes) {
            Err(Errno::EAGAIN) => self.spawn(token, async move {
                loop {
                    K::ready(socket.clone(), Wait::Write).await?;
                    match send_now(&*socket, &bytes) {
                        Err(Errno::EAGAIN) => {}
                        result => return result,
                    }
                }
            }),
            result => self.done.push(Completion { token, result }),
        }
    }

    fn migrate(&mut self, socket: SocketId, to: CoreId, mail: W::Mail) {
        let socket = self.sockets.remove(socket.0);
        // The runtime may hold the descriptor until it has reaped the socket's last op; a duplicate
        // is free of it. Without one (`EMFILE`) the connection ends here.
        if let Ok(socket) = fcntl_dupfd_cloexec(&*socket, 0) {
            self.cores[to.0 as usize].put(Parcel::Migrated { socket, mail });
        }
    }

    fn file(&self, file: FileId) -> &File<K> {
        self.files[file.0 as usize].as_ref().expect("the machine has opened the file")
    }

    fn start_io(&mut self, token: Token, file: FileId, io: FileIo) {
        let file = self.file(file).file.clone();
        self.in_flight_count += 1;
        self.kernel.start_io(token, file, io, &self.hub);
    }

    fn call(&mut self, token: Token, call: Call) {
        self.in_flight_count += 1;
        self.helper.call(token, call, &self.hub.mailbox);
    }

    /// With a descriptor of the call's own, so that no other thread ever holds the file's.
    fn call_file(&mut self, token: Token, file: FileId, call: impl FnOnce(OwnedFd) -> Call) {
        match fcntl_dupfd_cloexec(&*self.file(file).file, 0) {
            Ok(fd) => self.call(token, call(fd)),
            Err(error) => self.done.push(Completion { token, result: Err(errno(error)) }),
        }
    }

    fn deliver(&mut self, now: Instant, parcel: Parcel<W::Mail>) {
        let event = match parcel {
            Parcel::Mail(mail) => Event::Mail(mail),
            Parcel::Completion(completion) => {
                self.in_flight_count -= 1;
                Event::Completion(completion)
            }
            Parcel::Accepted { token, result } => {
                let result = result.and_then(|(socket, peer)| {
                    let socket = self.adopt(socket)?;
                    Ok(Output::Accepted { socket, peer })
                });
                Event::Completion(Completion { token, result })
            }
            Parcel::Opened { token, file, how, result } => {
                self.in_flight_count -= 1;
                let result = result.and_then(|fd| self.opened(file, fd, how));
                Event::Completion(Completion { token, result })
            }
            Parcel::Migrated { socket, mail } => match self.adopt(socket) {
                Ok(socket) => Event::Arrived { socket, mail },
                // Out of kernel memory: the connection ends.
                Err(_) => return,
            },
        };
        self.machine.on_event(now, event);
    }

    fn adopt(&mut self, socket: OwnedFd) -> Result<SocketId, Errno> {
        let socket = K::adopt_socket(socket).map_err(|it| io_errno(&it))?;
        Ok(SocketId(self.sockets.insert(Rc::new(socket))))
    }

    fn opened(&mut self, file: FileId, fd: OwnedFd, how: OpenHow) -> Result<Output, Errno> {
        let opened = Rc::new(K::adopt_file(fd).map_err(|it| io_errno(&it))?);
        let slot = file.0 as usize;
        if self.files.len() <= slot {
            self.files.resize_with(slot + 1, || None);
        }
        let before = self.files[slot].replace(File {
            file: opened,
            waits: how.direct || how.dsync,
            is_locked: how.lock,
        });
        assert!(before.is_none(), "{file:?} is open already");
        Ok(Output::Done)
    }
}

impl<W: Machine, K: Kernel> Drop for Pump<W, K> {
    fn drop(&mut self) {
        // A panic in the machine. The kernel still writes to its memory, or reads it: nothing may
        // run any more.
        if self.in_flight_count > 0 {
            std::process::abort();
        }
    }
}

/// Where tasks leave what happened, and wake the loop.
pub(super) struct Hub<M> {
    parcels: RefCell<Vec<Parcel<M>>>,
    waker: Cell<Option<Waker>>,
    /// To this core, for other threads.
    pub(super) mailbox: Sender<M>,
}

impl<M> Hub<M> {
    pub(super) fn complete(&self, token: Token, result: Result<Output, Errno>) {
        self.parcels.borrow_mut().push(Parcel::Completion(Completion { token, result }));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Brings what other threads send, for as long as the core runs.
async fn take_mail<K: Kernel, M>(
    bell: Rc<K::Socket>,
    mailbox: Receiver<M>,
    hub: Rc<Hub<M>>,
) -> Infallible {
    loop {
        K::ready(bell.clone(), Wait::Read).await.expect("an eventfd can be polled");
        mailbox.take(&mut hub.parcels.borrow_mut());
    }
}

pub(super) type Waiting<T> = Pin<Box<dyn Future<Output = T>>>;
