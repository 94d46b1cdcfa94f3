// Generic code, closures and formatting: enough for the compiler's threads to have something to share.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;

trait Shape: Debug {
    fn area(&self) -> f64;
}

macro_rules! shapes {
    ($($name:ident $k:expr),*) => { $(
        #[derive(Debug, Clone, PartialEq, PartialOrd)]
        struct $name { a: f64, b: Vec<f64>, c: BTreeMap<String, Vec<u32>> }
        impl Shape for $name {
            fn area(&self) -> f64 { self.a * $k + self.b.iter().map(|x| x.sqrt()).sum::<f64>() + self.c.len() as f64 }
        }
        impl $name {
            fn new(n: u32) -> Self {
                let mut c = BTreeMap::new();
                for i in 0..n { c.entry(format!("{}{}", stringify!($name), i % 9)).or_insert_with(Vec::new).push(i) }
                $name { a: n as f64, b: (0..n).map(|i| i as f64 * $k).collect(), c }
            }
        }
    )* };
}
shapes!(A 1.0, B 2.0, C 3.0, D 4.0, E 5.0, F 6.0, G 7.0, H 8.0, I 9.0, J 10.0, K 11.0, L 12.0);

fn primes(limit: usize) -> Vec<usize> {
    let mut composite = vec![false; limit + 1];
    let mut found = Vec::new();
    for n in 2..=limit {
        if !composite[n] {
            found.push(n);
            (n * n..=limit).step_by(n).for_each(|m| composite[m] = true);
        }
    }
    found
}

fn main() {
    let all: Vec<Box<dyn Shape>> = vec![
        Box::new(A::new(9)), Box::new(B::new(9)), Box::new(C::new(9)), Box::new(D::new(9)), Box::new(E::new(9)),
        Box::new(F::new(9)), Box::new(G::new(9)), Box::new(H::new(9)), Box::new(I::new(9)), Box::new(J::new(9)),
        Box::new(K::new(9)), Box::new(L::new(9)),
    ];
    let mut by: HashMap<u64, HashSet<String>> = HashMap::new();
    for shape in &all {
        by.entry(shape.area() as u64).or_default().insert(format!("{shape:?}"));
    }
    println!("{} {:?}", by.len(), primes(1000).last());
}
