//! The FIFOs between units and the log keeper: what each instance writes into, and what a unit reads
//! that takes what others write.

use std::os::fd::{AsFd, OwnedFd};

use super::super::run_mark::{self, Begin};
use super::super::{Launch, fifo, instruction};
use super::{Linux, owner_of, prepare_error};
use crate::model::{ProcessSpec, Ready, Role, StartError, UnitName};

impl Linux {
    /// The output FIFO of an instance, made or opened once.
    pub(super) fn output(&mut self, launch: &Launch) -> Result<OwnedFd, StartError> {
        let id = &launch.instance;
        let fail = |error: std::io::Error| prepare_error(format!("output FIFO of {id}"), &error);
        if !self.outputs.contains_key(id) {
            let owner = owner_of(&launch.spec).map_err(fail)?;
            let path = instruction::fifo_path(&self.dirs.run, id);
            let fifo = fifo::make(&path, owner).map_err(fail)?;
            fifo::let_openers_write(&fifo).map_err(fail)?;
            self.outputs.insert(id.clone(), self.descriptors.out_of_the_way(fifo));
        }
        let Some(fifo) = self.outputs.get(id) else {
            return Err(fail(std::io::Error::from_raw_os_error(libc::EBADF)));
        };
        fifo::child_end(fifo).map_err(fail)
    }

    /// What a unit reads that takes what others write.
    pub(super) fn input(&mut self, launch: &Launch) -> Result<OwnedFd, StartError> {
        let unit = &launch.instance.unit;
        let fail = |error: std::io::Error| prepare_error(format!("input FIFO of {unit}"), &error);
        let owner = owner_of(&launch.spec).map_err(fail)?;
        self.open_input(unit, owner).map_err(fail)?;
        let fifo =
            self.inputs.get(unit).ok_or_else(|| fail(std::io::ErrorKind::NotFound.into()))?;
        fifo::child_end(fifo).map_err(fail)
    }

    /// Makes the input FIFO of a unit, or opens the one that is there.
    pub(super) fn open_input(
        &mut self,
        unit: &UnitName,
        owner: Option<u32>,
    ) -> std::io::Result<()> {
        if self.inputs.contains_key(unit) && owner.is_none() {
            return Ok(());
        }
        let path = instruction::input_path(&self.dirs.run, unit);
        instruction::make_dir(&instruction::log_dir(&self.dirs.run))?;
        let fifo = fifo::make(&path, owner)?;
        fifo::let_owner_read(fifo.as_fd())?;
        self.inputs.insert(unit.clone(), fifo);
        Ok(())
    }

    /// Tells the log keeper where in the output the run begins: before the first of its processes, and
    /// once more before the main one where that is to be heard.
    pub(super) fn mark_run(&mut self, launch: &Launch, process: &ProcessSpec) {
        let Some(kept) = self.runs.get_mut(&launch.run) else { return };
        let is_marked = std::mem::replace(&mut kept.is_marked, true);
        let marks_itself = launch.role == Role::Main && matches!(*process.ready, Ready::Log(_));
        if is_marked || marks_itself {
            return;
        }
        // A full FIFO: nobody reads at the moment, and this run's lines will pass for the last one's.
        if let Err(error) = self.mark_output(launch, Begin::Run) {
            log::debug!("{}: {error}", launch.instance);
        }
    }

    pub(super) fn mark_output(&mut self, launch: &Launch, begin: Begin) -> Result<(), StartError> {
        let fail = |error: std::io::Error| {
            let subject = format!("output FIFO of {}", launch.instance);
            // It is full, as nobody reads it now.
            StartError { passing: true, ..prepare_error(subject, &error) }
        };
        let Some(fifo) = self.outputs.get(&launch.instance) else { return Ok(()) };
        let mark = run_mark::text(begin, launch.run);
        nix::unistd::write(fifo, &mark).map(drop).map_err(|errno| fail(errno.into()))
    }
}
