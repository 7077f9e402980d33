//! Lists the NICs of this machine: which of them Becket drives, and what is missing to use each.

use std::fmt::Write;
use std::process::ExitCode;

use becket::pci::Bdf;
use becket::pci::sysfs::{FunctionInfo, Obstacle, Sysfs};
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Lists the NICs of this machine: who has them, whether Becket drives them, and what is missing to use each,
/// with the command that remedies it.
///
/// A NIC is used from user space through the kernel's VFIO: it has to be in an IOMMU group, be bound to
/// vfio-pci instead of its kernel driver, and share its group with no function that a kernel driver has.
/// `list bind` does the binding, and `list unbind` gives the NIC back. Both need root; listing does not.
///
/// A bound NIC is gone from the kernel: its network interface, and what runs over it, with it. Mind the one
/// that you are logged in through.
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    /// List every PCI function, not the NICs only
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Hand a function to vfio-pci, so that Becket can use it
    Bind {
        /// Its address, as `list` or `lspci -D` shows it: 0000:01:00.0
        bdf: Bdf,
    },
    /// Take a function from vfio-pci, and let the kernel's own driver have it again
    Unbind {
        /// Its address
        bdf: Bdf,
    },
}

/// One function, as it is printed.
#[derive(Serialize)]
struct Row {
    bdf: String,
    id: String,
    what: String,
    /// Becket has a driver for it.
    supported: bool,
    /// Nothing is missing to open it.
    ready: bool,
    driver: Option<String>,
    interfaces: Vec<String>,
    iommu_group: Option<u32>,
    /// The group's other functions.
    shares_group_with: Vec<String>,
    numa_node: Option<u32>,
    vfs: Option<Vfs>,
    physical_function: Option<String>,
    missing: Vec<Missing>,
}

#[derive(Serialize)]
struct Vfs {
    enabled: usize,
    total: u16,
}

#[derive(Serialize)]
struct Missing {
    what: String,
    remedy: String,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<String, Box<dyn std::error::Error>> {
    let sysfs = Sysfs::default();
    match options.action {
        Some(Action::Bind { bdf }) => {
            let binding = sysfs.bind_vfio(bdf)?;
            let previous = binding.previous().unwrap_or("no driver");
            return Ok(format!("{bdf}: was with {previous}, now with vfio-pci\n"));
        }
        Some(Action::Unbind { bdf }) => {
            let driver = sysfs.unbind_vfio(bdf)?;
            return Ok(format!("{bdf}: now with {}\n", driver.as_deref().unwrap_or("no driver")));
        }
        None => {}
    }
    let functions = sysfs.functions()?;
    let wanted = functions.iter().filter(|function| options.all || function.is_network());
    let rows: Vec<_> = wanted.map(|function| row(&sysfs, function)).collect();
    if options.json {
        return Ok(serde_json::to_string_pretty(&rows)? + "\n");
    }
    if rows.is_empty() {
        return Ok("no NIC on the PCI bus of this machine; --all lists every function\n".to_owned());
    }
    Ok(rows.iter().map(describe).collect())
}

fn row(sysfs: &Sysfs, function: &FunctionInfo) -> Row {
    let (bdf, ids) = (function.bdf, function.ids);
    let model = becket::driver::supported(ids.vendor, ids.device);
    // It may vanish between two looks: then nothing is to be said of it.
    let missing = sysfs.readiness(bdf).unwrap_or_default();
    let members = function.group.map(|group| sysfs.group(group)).unwrap_or_default();
    Row {
        bdf: bdf.to_string(),
        id: format!("{:04x}:{:04x}", ids.vendor, ids.device),
        what: model.unwrap_or(class_name(ids.class)).to_owned(),
        supported: model.is_some(),
        ready: missing.is_empty(),
        driver: function.driver.clone(),
        interfaces: function.interfaces.clone(),
        iommu_group: function.group,
        shares_group_with: members.iter().filter(|other| **other != bdf).map(Bdf::to_string).collect(),
        numa_node: function.numa_node,
        vfs: function.vfs.as_ref().map(|vfs| Vfs { enabled: vfs.present.len(), total: vfs.total }),
        physical_function: function.physical.map(|pf| pf.to_string()),
        missing: missing.iter().map(|o| Missing { what: o.to_string(), remedy: remedy(o) }).collect(),
    }
}

/// This program's own command where it has one.
fn remedy(obstacle: &Obstacle) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "list".to_owned());
    match obstacle {
        Obstacle::NotBound { bdf, .. } => format!("{program} bind {bdf}"),
        Obstacle::GroupNotViable { others, .. } => {
            let commands: Vec<_> = others.iter().map(|other| format!("{program} bind {other}")).collect();
            commands.join(" && ")
        }
        other => other.remedy(),
    }
}

fn describe(row: &Row) -> String {
    let mut facts = vec![format!("driver {}", row.driver.as_deref().unwrap_or("none"))];
    facts.extend(row.interfaces.iter().map(|name| format!("interface {name}")));
    facts.extend(row.iommu_group.map(|group| match row.shares_group_with.len() {
        0 => format!("IOMMU group {group}"),
        _ => format!("IOMMU group {group} (with {})", row.shares_group_with.join(", ")),
    }));
    facts.extend(row.numa_node.map(|node| format!("NUMA node {node}")));
    facts.extend(row.vfs.as_ref().map(|vfs| format!("{} of {} VFs", vfs.enabled, vfs.total)));
    facts.extend(row.physical_function.as_ref().map(|pf| format!("VF of {pf}")));
    let mut text = format!("{}  {}  {}\n    {}\n", row.bdf, row.id, row.what, facts.join(", "));
    if !row.supported {
        text += "    Becket has no driver for it\n";
    } else if row.ready {
        text += "    ready for Becket\n";
    } else {
        text += "    Becket drives it, but:\n";
        for missing in &row.missing {
            let _ = writeln!(text, "    - {}\n        {}", missing.what, missing.remedy);
        }
    }
    text
}

/// What the class code says it is (PCI Code and ID Assignment 1.11, section 1).
fn class_name(class: u32) -> &'static str {
    match (class >> 16, class >> 8 & 0xff) {
        (0x01, _) => "storage controller",
        (0x02, 0x00) => "Ethernet controller",
        (0x02, 0x07) => "InfiniBand controller",
        (0x02, _) => "network controller",
        (0x03, _) => "display controller",
        (0x04, _) => "multimedia controller",
        (0x05, _) => "memory controller",
        (0x06, _) => "bridge",
        (0x0c, _) => "serial bus controller",
        (0x12, _) => "processing accelerator",
        _ => "other device",
    }
}
