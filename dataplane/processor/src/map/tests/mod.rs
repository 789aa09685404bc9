mod laws;
mod model;
mod world;
