use super::Cluster;
use crate::switch::Cut;
use anyhow::Result;

impl Cluster {
    /// Passes on nothing of what the host and the others send each other. The client still reaches it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn cut(&mut self, host: usize) -> Result<()> {
        self.switch.cut(Cut::Host(host))
    }

    /// Passes on nothing of what `from` sends to `to`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn cut_one_way(&mut self, from: usize, to: usize) -> Result<()> {
        self.switch.cut(Cut::Way { from, to })
    }

    /// Loses one packet in so many, of what goes to or comes from the host.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn lose(&mut self, host: usize, one_in: u32) -> Result<()> {
        self.switch.cut(Cut::Loss { host, one_in })
    }

    /// Ends everything that [`cut`](Self::cut) and the others began.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn heal(&mut self) -> Result<()> {
        self.switch.heal(None)
    }

    /// Ends what concerns this host.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn heal_host(&mut self, host: usize) -> Result<()> {
        self.switch.heal(Some(host))
    }
}
