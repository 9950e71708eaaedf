//! Every class of wrong setting, with the text that the operator reads.

use super::*;

fn names() -> Vec<&'static str> {
    KEYS.iter().map(|(it, _)| *it).collect()
}

fn home() -> Home {
    Home { home: Some(PathBuf::from("/users/ada")), ..Home::default() }
}

fn from_file(text: &str) -> Result<Config, Vec<ConfigError>> {
    let mut layers = Layers::default();
    layers.add_file(Path::new("/etc/incoming.toml"), text, &names())?;
    Config::resolve(&layers, &home())
}

fn error_text(result: Result<Config, Vec<ConfigError>>) -> String {
    let errors = result.expect_err("is wrong");
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn works_without_any_file() {
    let config = Config::resolve(&Layers::default(), &home()).unwrap();
    assert_eq!(
        config,
        Config {
            listen: "127.0.0.1:4000".parse().unwrap(),
            listen_is_chosen: false,
            storage_dir: PathBuf::from("/users/ada/.local/share/incoming"),
            durability: DurabilityLevel::Synced,
            reserve_bytes: 64 << 20,
            max_size_bytes: None,
            dest_roots: Vec::new(),
            handover_mode: None,
            handover_group: None,
            runtime: Runtime::Monoio,
            cores: None,
            memory_bytes: 64 << 20,
            connections_max: 10_000,
            idle_timeout: Duration::from_secs(12 * 3600),
            lifetime: Duration::from_secs(30 * 86_400),
            callback_timeout: Duration::from_secs(55),
            callback_secret: None,
            callback_ca: Vec::new(),
            finish_timeout: Duration::from_secs(600),
            handover_timeout: Duration::from_secs(72 * 3600),
            refusals_max: 10,
            backend_behind_proxy: false,
            backend_keys: Vec::new(),
            log_format: LogFormat::Auto,
            log: "info".to_owned(),
        }
    );
}

#[test]
fn default_storage_dir() {
    let mut it = home();
    it.xdg_data_home = Some(PathBuf::from("/users/ada/data"));
    assert_eq!(it.storage_dir(), Some(PathBuf::from("/users/ada/data/incoming")));
    it.subdirectory = Some("demo");
    assert_eq!(it.storage_dir(), Some(PathBuf::from("/users/ada/data/incoming/demo")));
    it.system_usable = true;
    assert_eq!(it.storage_dir(), Some(PathBuf::from("/var/lib/incoming/demo")));
    assert_eq!(
        error_text(Config::resolve(&Layers::default(), &Home::default())),
        "default: storage_dir: there is no default, because neither HOME nor XDG_DATA_HOME is set\
         \n  remedy: give a directory with --storage-dir, INCOMING_STORAGE_DIR or storage_dir"
    );
}

#[test]
fn reads_every_key_from_a_file() {
    let config = from_file(
        "# a comment\nlisten = '[::1]:0'\nstorage_dir = '/srv/in'\nruntime = 'tokio-uring'\n\
         durability = 'written'\nreserve = '0B'\nmax_size = '1TiB'\n\
         handover_mode = '0640'\nhandover_group = 'root'\n\
         dest_roots = ['/srv/a/', '/srv/b']\ncores = 3\nmemory = '1GiB'\nconnections_max = 1\nidle_timeout = '90s'\n\
         callback_timeout = '1s'\nfinish_timeout = '1h30m'\nbackend_behind_proxy = true\n\
         log_format = 'json'\nlog = 'warn,incoming=debug'\n",
    )
    .unwrap();
    assert_eq!(config.listen, "[::1]:0".parse().unwrap());
    assert!(config.listen_is_chosen);
    assert_eq!(config.storage_dir, Path::new("/srv/in"));
    assert_eq!(config.durability, DurabilityLevel::Written);
    assert_eq!(config.reserve_bytes, 0);
    assert_eq!(config.runtime, Runtime::TokioUring);
    assert_eq!(config.max_size_bytes, Some(1 << 40));
    assert_eq!(config.dest_roots, ["/srv/a", "/srv/b"].map(PathBuf::from));
    assert_eq!(config.handover_mode, Some(0o640));
    assert_eq!(config.handover_group, Some(Group { name: "root".into(), gid: 0 }));
    assert_eq!(config.cores, Some(3));
    assert_eq!(config.memory_bytes, 1 << 30);
    assert_eq!(config.connections_max, 1);
    assert_eq!(config.idle_timeout, Duration::from_secs(90));
    assert_eq!(config.callback_timeout, Duration::from_secs(1));
    assert_eq!(config.finish_timeout, Duration::from_secs(5400));
    assert!(config.backend_behind_proxy);
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.log, "warn,incoming=debug");
}

#[test]
fn flags_over_environment_over_file() {
    let mut layers = Layers::default();
    let file = "cores = 1\nmemory = '8MiB'\nlog = 'warn'";
    layers.add_file(Path::new("f"), file, &names()).unwrap();
    let environment = [
        ("INCOMING_CORES", "2"),
        ("INCOMING_MEMORY", "16MiB"),
        ("INCOMING_LOG", ""),
        ("INCOMING_CONFIG", "f"),
        ("INCOMING_PORT", "tcp://10.0.0.1:4000"),
        ("INCOMING_SERVICE_HOST", "10.0.0.1"),
        ("OTHER", "x"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    layers.add_environment(environment, &names()).unwrap();
    layers.add_flag("cores", "3".to_owned());
    let config = Config::resolve(&layers, &home()).unwrap();
    assert_eq!(config.cores, Some(3));
    assert_eq!(config.memory_bytes, 16 << 20);
    assert_eq!(config.log, "warn");
}

#[test]
fn relative_directories_become_absolute() {
    let config = from_file("storage_dir = 'here'").unwrap();
    assert_eq!(config.storage_dir, std::env::current_dir().unwrap().join("here"));
}

#[test]
fn unknown_keys_stop_the_start() {
    assert_eq!(
        error_text(from_file("listen = '127.0.0.1:1'\n\nstorage-dir = '/x'")),
        "/etc/incoming.toml, line 3: storage-dir = '/x': this key is not known\n  \
         remedy: did you mean storage_dir?"
    );
    let text = error_text(from_file("workers = 4"));
    assert!(text.contains("line 1: workers = 4: this key is not known"), "{text}");
    assert!(
        text.contains("remedy: remove it; known are listen, storage_dir, durability"),
        "{text}"
    );
    // A section is a key too.
    let text = error_text(from_file("[server]\nlisten = '127.0.0.1:1'"));
    assert!(text.contains("line 1: server"), "{text}");
}

#[test]
fn unknown_variables_stop_the_start() {
    let mut layers = Layers::default();
    let variables = [("INCOMING_LSITEN".to_owned(), "x".to_owned())];
    let errors = layers.add_environment(variables, &names()).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "environment: INCOMING_LSITEN=x: this key is not known\n  \
         remedy: did you mean INCOMING_LISTEN?"
    );
}

#[test]
fn every_wrong_line_is_reported() {
    let text = error_text(from_file("cores = 0\nmemory = '64M'\nruntime = 'tokio'"));
    assert_eq!(text.matches("remedy:").count(), 3, "{text}");
    let text = error_text(from_file("a = 1\nb = 2"));
    assert_eq!(text.matches("remedy:").count(), 2, "{text}");
}

#[test]
fn not_toml() {
    let text = error_text(from_file("listen = '127.0.0.1:1'\nmemory 64MiB\n"));
    assert!(text.starts_with("/etc/incoming.toml, line 2: it is not TOML: "), "{text}");
    assert!(text.contains("remedy: write one `key = value` in each line"), "{text}");
}

#[test]
fn every_wrong_value_says_what_to_write() {
    for (line, what, remedy) in [
        ("listen = 'localhost:80'", "not an IP address and a port", "write 127.0.0.1:80 for"),
        ("listen = ':80'", "not an IP address and a port", "0.0.0.0:80 or [::]:80"),
        ("listen = 80", "not an IP address and a port", "write 127.0.0.1:80 for"),
        ("listen = '127.0.0.1'", "not an IP address and a port", "like 127.0.0.1:4000 or"),
        ("listen = '127.0.0.1:70000'", "not an IP address and a port", "like 127.0.0.1:4000"),
        ("durability = 'sync'", "none of the possible values", "did you mean synced?"),
        ("durability = 'disk'", "none of the possible values", "write one of synced, written"),
        ("runtime = 'tokio_uring'", "none of the possible values", "did you mean tokio-uring?"),
        ("runtime = 'glommio'", "none of the possible values", "write one of monoio, tokio-uring"),
        ("max_size = '5'", "has no unit", "units B, KiB"),
        ("dest_roots = 'srv'", "\"srv\" is no absolute path", "like /srv/app"),
        ("dest_roots = ['/a', '/b/../c']", "\"/b/../c\" is no absolute path", "like /srv/app"),
        ("dest_roots = [['/a']]", "neither text", "memory = \"64MiB\""),
        ("handover_mode = '0o640'", "no octal number", "a mode such as 0640"),
        ("handover_mode = 648", "no octal number", "a mode such as 0640"),
        ("handover_mode = 2640", "more than permissions", "777 or less"),
        ("handover_mode = '0066'", "owner could not read it", "write 0466"),
        ("handover_group = 'no such'", "there is no such group", "getent group"),
        ("handover_group = -1", "there is no such group", "or its number"),
        ("cores = 0", "out of range", "from 1 to 1024"),
        ("cores = 'all'", "not a whole number", "digits only"),
        ("cores = 1.5", "neither text nor a whole number", "memory = \"64MiB\""),
        ("memory = '64M'", "\"M\" is not a unit of size", "did you mean 64MiB?"),
        ("memory = 67108864", "has no unit", "units B, KiB"),
        ("memory = '1MiB'", "out of range", "from 8MiB to 2GiB"),
        ("memory = '4GiB'", "out of range", "from 8MiB to 2GiB"),
        ("memory = '9000000B'", "not a whole number of MiB", "write 8MiB"),
        ("connections_max = 0", "out of range", "from 1 to 1000000"),
        ("idle_timeout = '0s'", "out of range", "from 1s to 365d"),
        ("idle_timeout = '12'", "has no unit", "units ms, s, m, h, d"),
        ("callback_timeout = '2h'", "out of range", "from 1s to 1h"),
        ("finish_timeout = '31d'", "out of range", "from 1s to 30d"),
        ("backend_behind_proxy = 'yes'", "none of the possible values", "one of true, false"),
        ("log_format = 'jsno'", "none of the possible values", "did you mean json?"),
        ("log = 'incoming=loud'", "not a filter for the log", "write error, warn, info"),
        ("storage_dir = ['a']", "neither text", "memory = \"64MiB\""),
    ] {
        let text = error_text(from_file(line));
        let place = "/etc/incoming.toml, line 1: ";
        assert!(text.starts_with(place) && text.contains(what), "{line}: {text}");
        let told = text.split("remedy: ").nth(1).unwrap();
        assert!(told.contains(remedy), "{line}: {text}");
    }
}

#[test]
fn what_callbacks_are_signed_with() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).unwrap();
        format!("callback_secret_file = '{}'", folder.path().join(name).display())
    };
    let secret = Some(Secret::from("sixteen bytes ok"));
    assert_eq!(from_file("callback_secret = 'sixteen bytes ok'").unwrap().callback_secret, secret);
    let good = file("good", b"sixteen bytes ok\n");
    assert_eq!(from_file(&good).unwrap().callback_secret, secret);
    let short = "callback_secret = 'fifteen bytes..'".to_owned();
    for (line, what, remedy) in [
        (short, "shorter than 16 bytes", "openssl rand -hex 32"),
        (file("short", b"fifteen bytes..\n"), "shorter than 16 bytes", "openssl rand -hex 32"),
        (file("empty", b" \n"), "the file is empty", "openssl rand -hex 32 > FILE"),
        (file("bytes", &[0xff; 32]), "the file is not text", "openssl rand -hex 32 > FILE"),
        ("callback_secret_file = '/nowhere'".into(), "No such file", "that exists and that this"),
        ("callback_secret = ['sixteen bytes ok']".into(), "neither text", "memory"),
        (
            format!("{good}\ncallback_secret = 'sixteen bytes ok'"),
            "callback_secret is set as well",
            "remove one of the two",
        ),
    ] {
        let text = error_text(from_file(&line));
        assert!(text.contains(what) && text.contains(remedy), "{line}: {text}");
        assert!(text.contains(line.split(" = ").next().unwrap()), "it names the key: {text}");
        assert!(!text.contains("bytes ok") && !text.contains("bytes.."), "not the secret: {text}");
    }
    // Not even by a typing error.
    let text = error_text(from_file("calback_secret = 'sixteen bytes ok'"));
    assert!(text.contains("did you mean callback_secret?") && !text.contains("bytes ok"), "{text}");
    let debug = format!("{:?}", from_file("callback_secret = 'sixteen bytes ok'").unwrap());
    assert!(!debug.contains("bytes ok"), "{debug}");
}

#[test]
fn own_authorities() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    let file = |name: &str, content: &str| {
        std::fs::write(folder.path().join(name), content).unwrap();
        format!("callback_ca = '{}'", folder.path().join(name).display())
    };
    let two = file("two", &format!("# ours\n{}\n{}", certificate.pem(), certificate.pem()));
    let both = vec![certificate.der().clone(); 2];
    assert_eq!(from_file(&two).unwrap().callback_ca, both);
    let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (line, what) in [
        ("callback_ca = '/nowhere'".to_owned(), "the file cannot be read: No such file"),
        (format!("callback_ca = '{}'", folder.path().display()), "the file cannot be read: Is a"),
        (file("empty", ""), "the file holds no certificate"),
        (file("text", "no certificate"), "the file holds no certificate"),
        (file("key", &key.serialize_pem()), "the file holds no certificate"),
        (file("cut", &certificate.pem()[..200]), "the file is not PEM"),
        (file("rubbish", rubbish), "certificate 1 of the file is of no use"),
        (file("second", &(certificate.pem() + rubbish)), "certificate 2 of the file is of no use"),
    ] {
        let text = error_text(from_file(&line));
        let place = "/etc/incoming.toml, line 1: callback_ca = \"/";
        assert!(text.starts_with(place) && text.contains(what), "{line}: {text}");
        assert!(text.contains("remedy: give a "), "{line}: {text}");
    }
}

#[test]
fn each_layer_names_its_place() {
    let mut layers = Layers::default();
    layers.add_environment([("INCOMING_CORES".to_owned(), "none".to_owned())], &names()).unwrap();
    layers.add_flag("idle_timeout", "soon".to_owned());
    let text = error_text(Config::resolve(&layers, &home()));
    assert!(text.contains("environment: INCOMING_CORES=\"none\": it is not a whole"), "{text}");
    assert!(text.contains("command line: --idle-timeout \"soon\": it does not begin"), "{text}");
}
