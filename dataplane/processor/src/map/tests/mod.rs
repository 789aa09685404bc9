mod compare;
mod laws;
mod model;
mod world;
