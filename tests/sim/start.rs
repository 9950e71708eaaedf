//! What a server does before its cores run: it reads the journals of the run before, and begins
//! those of its own. In the order of the real one, call by call, so that it can end at any of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::buffer::{Memory, Slice};
use engine::journal::{
    CommitSync, FILE_BYTES_MIN, FileName, JOURNAL_NAME, JournalFile, LogStart, NewFile, Recovery,
    Side, file_bytes_wanted, recover,
};
use engine::limits::BLOCK_BYTES;
use engine::op::{CoreId, Errno, FileId, FileOp, Op, OpenHow, Output, Token};
use engine::record::TicketRecord;

use crate::disk::Disk;

/// What the cores begin with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) run: u64,
    /// Index: core.
    pub(crate) logs: Vec<LogStart>,
    pub(crate) tickets: Vec<Vec<TicketRecord>>,
    pub(crate) recovery: Recovery,
}

/// It came to an end of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// In the middle of a call.
    Short,
    /// The disk said no: the operator tries again.
    Refused(Errno),
}

/// One start.
#[derive(Debug)]
pub(crate) struct Starter<'d> {
    disk: &'d mut Disk,
    memory: Memory,
    files: BTreeMap<FileName, FileId>,
    file_next: u32,
    /// Calls until it ends, if it does.
    calls_left: Option<usize>,
}

impl<'d> Starter<'d> {
    pub(crate) fn new(disk: &'d mut Disk, calls_left: Option<usize>) -> Self {
        let memory = Memory::new(FILE_BYTES_MIN as usize).expect("memory");
        Self { disk, memory, files: BTreeMap::new(), file_next: 0, calls_left }
    }

    /// `has_rebooted`: the machine has started anew since the run before.
    pub(crate) fn run(
        mut self,
        core_count: u16,
        sync: CommitSync,
        has_rebooted: bool,
    ) -> Result<Start, Cut> {
        // Nobody writes to them any more then, not even a killed process.
        for name in names(self.disk) {
            self.open(name, OpenHow { lock: true, ..OpenHow::default() })?;
        }
        let mut recovery = recovered(self.disk, Disk::data);
        assert_eq!(recovery.damage, [], "a crash damages nothing");
        if has_rebooted && recovery.is_relaxed {
            recovery.distrust_offsets();
        }
        let mut tickets = vec![Vec::new(); usize::from(core_count)];
        for record in &recovery.tickets {
            tickets[usize::from(record.new.id.owner(core_count).0)].push(record.clone());
        }
        let (run, service_ms) = (recovery.run_next, recovery.service_ms);
        let beginning = |core, it| NewFile::new(core, core_count, run, sync, service_ms, it);
        let beginnings: Vec<NewFile> =
            tickets.iter().zip(0..).map(|(it, core)| beginning(core, it)).collect();
        let logs = self.begin(&recovery, &beginnings)?;
        self.remove_surplus(core_count)?;
        for file in std::mem::take(&mut self.files).into_values() {
            self.disk.start(ME, Token::None, Op::<()>::CloseFile { file }, &self.memory);
        }
        Ok(Start { run, logs, tickets, recovery })
    }

    /// The snapshots of all cores first, durably, then their headers: with the last one the new run
    /// counts.
    fn begin(&mut self, recovery: &Recovery, new: &[NewFile]) -> Result<Vec<LogStart>, Cut> {
        for file in self.files.values().copied().collect::<Vec<_>>() {
            self.call(Op::Sync { file })?;
        }
        let mut logs = Vec::new();
        let names = (0..new.len() as u16)
            .map(|core| FileName { core, side: recovery.side_for(core) })
            .collect::<Vec<_>>();
        for (name, new) in names.iter().zip(new) {
            let wanted = file_bytes_wanted(new.commits.len() as u64);
            let mut capacity_bytes = [0; 2];
            for side in [Side::A, Side::B] {
                let it = FileName { side, ..*name };
                let needed = if it == *name { new.file_bytes_min() } else { FILE_BYTES_MIN };
                capacity_bytes[side as usize] = self.prepare(it, wanted.max(needed))?;
            }
            logs.push(new.start(name.side, capacity_bytes));
        }
        self.call(Op::SyncDirectory { path: JOURNAL_NAME.into() })?;
        for (name, new) in names.iter().zip(new) {
            self.write(*name, u64::from(BLOCK_BYTES), &new.commits)?;
        }
        for (name, new) in names.iter().zip(new) {
            self.write(*name, 0, &new.header)?;
        }
        Ok(logs)
    }

    fn prepare(&mut self, name: FileName, wanted: u64) -> Result<u64, Cut> {
        if !self.files.contains_key(&name) {
            self.open(name, OpenHow { create: true, lock: true, ..OpenHow::default() })?;
        }
        let length = self.disk.data(&path_of(name)).expect("it was opened").len() as u64;
        let wanted = length.max(wanted);
        let file = self.files[&name];
        match self.call(Op::Allocate { file, offset_bytes: 0, length_bytes: wanted }) {
            Err(Cut::Refused(Errno::EOPNOTSUPP)) => {
                self.call(Op::Truncate { file, length_bytes: wanted })?;
            }
            result => drop(result?),
        }
        Ok(wanted)
    }

    /// Durably.
    fn write(&mut self, name: FileName, offset: u64, bytes: &[u8]) -> Result<(), Cut> {
        let file = self.files[&name];
        let mut done = 0;
        while done < bytes.len() {
            let count = (bytes.len() - done).min(FILE_BYTES_MIN as usize);
            let slice = Slice { start: 0, length: count as u32 };
            self.memory.bytes_mut(slice).copy_from_slice(&bytes[done..done + count]);
            let offset_bytes = offset + done as u64;
            let written = self.call(Op::Write { file, offset_bytes, bytes: slice })?;
            done += written.bytes() as usize;
        }
        self.call(Op::Sync { file })?;
        Ok(())
    }

    /// The run before may have had more cores.
    fn remove_surplus(&mut self, core_count: u16) -> Result<(), Cut> {
        let surplus: Vec<FileName> =
            self.files.keys().copied().filter(|it| it.core >= core_count).collect();
        for name in &surplus {
            self.call(Op::Remove { path: path_of(*name) })?;
        }
        if !surplus.is_empty() {
            self.call(Op::SyncDirectory { path: JOURNAL_NAME.into() })?;
        }
        Ok(())
    }

    fn open(&mut self, name: FileName, how: OpenHow) -> Result<(), Cut> {
        let file = FileId(self.file_next);
        self.file_next += 1;
        loop {
            match self.call(Op::Open { file, path: path_of(name), how }) {
                // The last writes of a killed process end soon.
                Err(Cut::Refused(Errno::EAGAIN)) => assert!(self.disk.land_orphan()),
                result => {
                    result?;
                    self.files.insert(name, file);
                    return Ok(());
                }
            }
        }
    }

    fn call(&mut self, op: Op<()>) -> Result<Output, Cut> {
        let token = Token::File { slot: 0, generation: 0, what: FileOp::Step };
        self.disk.start(ME, token, op, &self.memory);
        if let Some(left) = &mut self.calls_left {
            if *left == 0 {
                return Err(Cut::Short);
            }
            *left -= 1;
        }
        loop {
            if let Some(completion) = self.disk.complete(ME, &mut self.memory) {
                return completion.result.map_err(Cut::Refused);
            }
        }
    }
}

/// What the journals say, as `content` shows them.
pub(crate) fn recovered<'d>(
    disk: &'d Disk,
    content: impl Fn(&'d Disk, &Path) -> Option<&'d [u8]>,
) -> Recovery {
    let names = names(disk);
    let files = names
        .into_iter()
        .filter_map(|name| content(disk, &path_of(name)).map(|bytes| JournalFile { name, bytes }));
    recover(&files.collect::<Vec<_>>())
}

fn names(disk: &Disk) -> Vec<FileName> {
    let names = disk.names(JOURNAL_NAME.as_ref());
    names.filter_map(|it| FileName::parse(it.file_name()?.to_str()?)).collect()
}

fn path_of(name: FileName) -> PathBuf {
    Path::new(JOURNAL_NAME).join(name.to_string())
}

/// The thread that starts the cores.
const ME: CoreId = CoreId(u16::MAX);
