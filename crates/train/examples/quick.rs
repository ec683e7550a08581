use ounce_train::*;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let recipe = Recipe::read(
        args[1].as_ref(),
        &args[3..]
            .iter()
            .filter(|a| a.contains('='))
            .cloned()
            .collect::<Vec<_>>(),
    )
    .unwrap();
    if let Ok(t) = std::env::var("THREADS") {
        ounce_kernels::set_threads(t.parse().unwrap());
    }
    let job = TrainJob {
        recipe,
        out: args[2].clone().into(),
        data: ounce_data::DataDir::from_environment(None),
        resume: args.contains(&"--resume".into()),
        force: false,
        command_line: "ounce train".into(),
    };
    let mut last = std::time::Instant::now();
    let r = train(
        &job,
        &mut |e| match e {
            Event::Step(s) => {
                if s.step < 10 || last.elapsed().as_secs() >= 10 {
                    last = std::time::Instant::now();
                    println!(
                        "step {} loss {:.4} {:?} norm {:.3} {:.0} tok/s",
                        s.step, s.loss, s.parts, s.grad_norm, s.tokens_per_second
                    );
                }
            }
            other => println!("{other:?}"),
        },
        &std::sync::atomic::AtomicBool::new(false),
    );
    println!("{r:?}");
}
