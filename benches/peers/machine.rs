//! The machine that was measured on, as far as it decides about figures. Never its name.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{major, minor, stat};
use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// As the processor names itself.
    pub(crate) cpu: String,
    pub(crate) cpu_count: usize,
    pub(crate) is_virtual: bool,
    /// Vector instructions that matter here.
    pub(crate) vector_instructions: Vec<String>,
    /// Second-level cache of a core, as the kernel writes it ("2048K").
    pub(crate) second_level_cache: Option<String>,
    pub(crate) memory_bytes: u64,
    /// Version of Linux, without what a distribution appends.
    pub(crate) kernel: String,
    /// Below the measured directory.
    pub(crate) file_system: String,
    pub(crate) disk: String,
}

impl Machine {
    /// This one. `directory` tells the disk.
    pub(crate) fn detect(directory: &Path) -> io::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let flags = cpu_flags(&cpuinfo);
        let known =
            [("avx2", "AVX2"), ("avx512f", "AVX-512"), ("sha_ni", "SHA"), ("asimd", "NEON")];
        let vectors = known.iter().filter(|it| flags.contains(&it.0)).map(|it| it.1.to_owned());
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Ok(Self {
            cpu: cpu_name(&cpuinfo),
            cpu_count: std::thread::available_parallelism()?.get(),
            is_virtual: flags.contains(&"hypervisor"),
            vector_instructions: vectors.collect(),
            second_level_cache: read("/sys/devices/system/cpu/cpu0/cache/index2/size".as_ref()),
            memory_bytes: memory_bytes(&fs::read_to_string("/proc/meminfo")?),
            kernel: release.split('-').next().unwrap_or_default().to_owned(),
            file_system: file_system(&fs::read_to_string("/proc/self/mounts")?, directory),
            disk: disk(directory).unwrap_or_else(|| "unknown".to_owned()),
        })
    }

    /// A name for directories: "intel-xeon-2vcpu".
    pub(crate) fn kind(&self) -> String {
        let mut name = String::new();
        for word in self.cpu.to_lowercase().replace("(r)", "").replace("(tm)", "").split(' ') {
            // What stands behind is the clock.
            if word == "@" {
                break;
            }
            let word: String = word.chars().filter(|it| it.is_ascii_alphanumeric()).collect();
            if !word.is_empty()
                && !["processor", "cpu"].contains(&word.as_str())
                && !word.ends_with("core")
            {
                name.push_str(&word);
                name.push('-');
            }
        }
        format!("{name}{}{}", self.cpu_count, if self.is_virtual { "vcpu" } else { "cpu" })
    }
}

/// x86 says "model name"; ARM kernels leave that to the "CPU part" number.
fn cpu_name(cpuinfo: &str) -> String {
    let name = field(cpuinfo, "model name").or_else(|| field(cpuinfo, "CPU part"));
    name.unwrap_or("unknown").to_owned()
}

fn cpu_flags(cpuinfo: &str) -> Vec<&str> {
    let flags = field(cpuinfo, "flags").or_else(|| field(cpuinfo, "Features"));
    flags.unwrap_or_default().split(' ').collect()
}

fn memory_bytes(meminfo: &str) -> u64 {
    let total = field(meminfo, "MemTotal").and_then(|it| it.strip_suffix(" kB"));
    total.and_then(|it| it.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The value of the first line "key: value".
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.into_iter().find(|it| it.0.trim() == key).map(|it| it.1.trim())
}

/// The type of the mount that `directory` lies below (fstab(5): device, mount point, type).
fn file_system(mounts: &str, directory: &Path) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    // Of two mounts at one place the later one is seen.
    let nearest = mounts
        .filter(|it| directory.starts_with(it.0))
        .max_by_key(|it| Path::new(it.0).components().count());
    nearest.map_or("unknown", |it| it.1).to_owned()
}

/// The kind of disk below a directory, from what the kernel knows of its block device.
fn disk(directory: &Path) -> Option<String> {
    let device = stat(directory).ok()?.st_dev;
    let link = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let mut block = fs::canonicalize(link).ok()?;
    // A partition is part of a disk.
    if block.join("partition").exists() {
        block.pop();
    }
    let driver = fs::read_link(block.join("device/driver")).ok();
    let driver = driver.and_then(|it| Some(it.file_name()?.to_string_lossy().into_owned()));
    let rotates = read(&block.join("queue/rotational")).as_deref() == Some("1");
    let cache = read(&block.join("queue/write_cache")).unwrap_or_default();
    let name = block.file_name()?.to_string_lossy().into_owned();
    Some(format!("{}, {cache}", disk_kind(&name, driver.as_deref(), rotates)))
}

fn disk_kind(name: &str, driver: Option<&str>, rotates: bool) -> &'static str {
    match driver {
        // A virtual disk says about rotation what its host pleases.
        Some("virtio_blk" | "xen-blkfront" | "vbd") => "virtual disk",
        _ if name.starts_with("nvme") => "NVMe",
        _ if rotates => "hard disk",
        _ => "solid-state disk",
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|it| it.trim().to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn machine(cpu: &str, is_virtual: bool) -> Machine {
        Machine {
            cpu: cpu.to_owned(),
            cpu_count: 2,
            is_virtual,
            vector_instructions: vec!["AVX2".to_owned()],
            second_level_cache: Some("2048K".to_owned()),
            memory_bytes: 24 << 30,
            kernel: "6.18.44".to_owned(),
            file_system: "ext4".to_owned(),
            disk: "virtual disk, write back".to_owned(),
        }
    }

    #[test]
    fn kind_is_short_and_fit_for_a_directory() {
        let kind = |cpu: &str, is_virtual| machine(cpu, is_virtual).kind();
        assert_eq!(kind("Intel(R) Xeon(R) Processor", true), "intel-xeon-2vcpu");
        assert_eq!(kind("AMD EPYC 9R14 96-Core Processor", true), "amd-epyc-9r14-2vcpu");
        assert_eq!(kind("Intel(R) Core(TM) i5-7200U CPU @ 2.50GHz", false), "intel-i57200u-2cpu");
        assert_eq!(kind("0xd0c", true), "0xd0c-2vcpu");
    }

    #[test]
    fn processor_and_memory_are_read_from_what_the_kernel_writes() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 hypervisor\n";
        assert_eq!(cpu_name(cpuinfo), "AMD EPYC");
        assert_eq!(cpu_flags(cpuinfo), ["fpu", "avx2", "hypervisor"]);
        let cpuinfo = "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n";
        assert_eq!((cpu_name(cpuinfo).as_str(), cpu_flags(cpuinfo).len()), ("0xd0c", 2));
        assert_eq!(memory_bytes("MemTotal:        2048 kB\nMemFree:  1 kB\n"), 2 << 20);
    }

    #[test]
    fn file_system_is_the_nearest_mount() {
        let mounts =
            "/dev/vda / ext4 rw 0 0\ntmpfs /data tmpfs rw 0 0\n/dev/vdb /data xfs rw 0 0\n";
        assert_eq!(file_system(mounts, Path::new("/data/peers")), "xfs");
        assert_eq!(file_system(mounts, Path::new("/database")), "ext4");
    }

    #[test]
    fn disk_is_named_by_what_is_known() {
        assert_eq!(disk_kind("vda", Some("virtio_blk"), true), "virtual disk");
        assert_eq!(disk_kind("nvme0n1", Some("nvme"), false), "NVMe");
        assert_eq!(disk_kind("sda", Some("sd"), true), "hard disk");
        assert_eq!(disk_kind("sdb", None, false), "solid-state disk");
    }

    #[test]
    fn this_machine_is_described_without_its_name() {
        let machine = Machine::detect(Path::new("/")).unwrap();
        assert!(machine.memory_bytes > 0 && machine.cpu_count > 0);
        assert!(machine.kernel.starts_with(|it: char| it.is_ascii_digit()), "{machine:?}");
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let text = serde_json::to_string(&machine).unwrap();
        // A name as short as "vm" may also be part of another word.
        let words: Vec<&str> = text.split(|it: char| !it.is_ascii_alphanumeric()).collect();
        assert!(!words.contains(&name.as_str()), "{text} names the host {name}");
    }
}
