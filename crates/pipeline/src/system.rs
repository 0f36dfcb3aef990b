//! What the machine says of itself: memory used, disk free, processor.

use std::path::Path;

/// The largest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub(crate) fn peak_memory() -> u64 {
    proc_line("/proc/self/status", "VmHWM:")
        .and_then(|line| line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()))
        .map_or(0, |kib| kib * 1024)
}

/// The resident memory of this process now, in bytes.
pub(crate) fn resident_memory() -> Option<u64> {
    let line = proc_line("/proc/self/status", "VmRSS:")?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The processor's name, where the system tells.
pub(crate) fn processor() -> Option<String> {
    proc_line("/proc/cpuinfo", "model name").map(|line| line.trim_start_matches([':', ' ', '\t']).to_owned())
}

fn proc_line(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(|rest| rest.trim().to_owned())
}

/// Bytes free to this user on the disk that will hold `path`; `None` where the system does not tell.
pub(crate) fn free_disk(path: &Path) -> Option<u64> {
    let existing = std::path::absolute(path).ok()?;
    let existing = existing.ancestors().find(|ancestor| ancestor.exists())?;
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(existing).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}
