//! A made-up sysfs in a temporary directory, with as much of a kernel behind it as binding needs.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::{Sysfs, link_name};

#[derive(Default)]
struct Kernel {
    written: Vec<(PathBuf, String)>,
    refused: Vec<(String, i32)>,
    choice: Option<String>,
}

/// The tree, removed on drop.
pub struct Twin {
    root: PathBuf,
    kernel: Arc<Mutex<Kernel>>,
}

impl Twin {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("becket-sysfs-{}-{number}", std::process::id()));
        fs::create_dir_all(root.join("sys/bus/pci/devices")).unwrap();
        Self { root, kernel: Arc::default() }
    }

    pub fn sysfs(&self) -> Sysfs {
        let (root, kernel) = (self.root.clone(), self.kernel.clone());
        let write = move |path: &Path, value: &str| answer(&root, &kernel, path, value);
        Sysfs { root: self.root.clone(), write: Arc::new(write) }
    }

    pub fn function(&self, bdf: &str, vendor: u16, device: u16, class: &str) -> PathBuf {
        let dir = self.device(bdf);
        fs::create_dir_all(&dir).unwrap();
        self.file(&dir, "vendor", &format!("{vendor:#06x}\n"));
        self.file(&dir, "device", &format!("{device:#06x}\n"));
        self.file(&dir, "class", &format!("{class}\n"));
        self.file(&dir, "numa_node", "-1\n");
        fs::write(dir.join("config"), vendor.to_le_bytes()).unwrap();
        dir
    }

    pub fn file(&self, dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn directory(&self, path: &str) {
        fs::create_dir_all(self.root.join(path)).unwrap();
    }

    pub fn link(&self, bdf: &str, name: &str, target: &str) {
        symlink(target, self.device(bdf).join(name)).unwrap();
    }

    pub fn set_driver(&self, bdf: &str, driver: &str) {
        self.link(bdf, "driver", &format!("../../drivers/{driver}"));
    }

    pub fn set_group(&self, bdf: &str, group: u32) {
        self.link(bdf, "iommu_group", &format!("../../../../kernel/iommu_groups/{group}"));
        self.directory(&format!("sys/kernel/iommu_groups/{group}/devices/{bdf}"));
    }

    /// Writes to attributes whose path ends so fail from now on.
    pub fn refuse(&self, suffix: &str, errno: i32) {
        self.kernel.lock().unwrap().refused.push((suffix.to_owned(), errno));
    }

    /// The driver that a function without an override gets at a probe.
    pub fn kernel_chooses(&self, driver: &str) {
        self.kernel.lock().unwrap().choice = Some(driver.to_owned());
    }

    pub fn driver_of(&self, bdf: &str) -> Option<String> {
        link_name(&self.device(bdf).join("driver"))
    }

    pub fn override_of(&self, bdf: &str) -> String {
        fs::read_to_string(self.device(bdf).join("driver_override")).unwrap_or_default()
    }

    pub fn written(&self, suffix: &str) -> Vec<String> {
        let kernel = self.kernel.lock().unwrap();
        kernel.written.iter().filter(|(p, _)| p.ends_with(suffix)).map(|(_, v)| v.clone()).collect()
    }

    fn device(&self, bdf: &str) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(bdf)
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// What the kernel does with a write, as Linux `drivers/pci/pci-driver.c` and `drivers/base/bus.c` do.
fn answer(root: &Path, kernel: &Mutex<Kernel>, path: &Path, value: &str) -> io::Result<()> {
    let mut kernel = kernel.lock().unwrap();
    if let Some((_, errno)) = kernel.refused.iter().find(|(suffix, _)| path.ends_with(suffix)) {
        return Err(io::Error::from_raw_os_error(*errno));
    }
    kernel.written.push((path.to_owned(), value.to_owned()));
    let device = root.join("sys/bus/pci/devices").join(value);
    let bind = |driver: &str| {
        let forced = fs::read_to_string(device.join("driver_override")).unwrap_or_default();
        // vfio-pci takes only what is handed to it; an override keeps everybody else out.
        if forced.is_empty() == (driver == "vfio-pci") || !forced.is_empty() && forced != driver {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        symlink(format!("../../drivers/{driver}"), device.join("driver"))
    };
    match path.file_name().and_then(|name| name.to_str()) {
        Some("driver_override") => fs::write(path, value.trim()),
        Some("unbind") => fs::remove_file(device.join("driver")),
        Some("bind") => bind(&link_parent(path)),
        Some("drivers_probe") => kernel.choice.as_deref().map_or(Ok(()), bind),
        _ => Ok(()),
    }
}

fn link_parent(path: &Path) -> String {
    path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}
