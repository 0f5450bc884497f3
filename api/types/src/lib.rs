mod id; mod time; pub use id::*; pub use time::{Timestamp, Version};
