//! TLS and the certificates of agents: S04, A81, A82.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_scheduler::agent::{Agent, Client, Identity, SimulatedEngine};
use coracle_scheduler::server::{Authority, AuthorityFiles, TlsFiles};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use reqwest::Method;
use serde_json::{Value, json};

use crate::agent::{engine, reaches};
use crate::support::{DEADLINE, Env, instance, name, until};

/// A server whose agents need certificates.
struct Pool {
    env: Env,
    ca: String,
    files: AuthorityFiles,
}

fn authority(folder: &Path) -> AuthorityFiles {
    fs_err::create_dir_all(folder).expect("folder");
    let files = AuthorityFiles::in_folder(folder);
    Authority::make(&files).expect("authority");
    files
}

fn day() -> Duration {
    Duration::from_secs(24 * 3600)
}

impl Pool {
    async fn start(life: Duration) -> Self {
        let mut made = None;
        let env = Env::with(|options| {
            let folder = options.store.to_string();
            let folder = Path::new(&folder).with_extension("tls");
            let files = authority(&folder);
            let (certificates, key) = (folder.join("server.crt"), folder.join("server.key"));
            let signer = Authority::open(&files, day()).expect("authority");
            signer.make_server(&["127.0.0.1".to_owned()], &certificates, &key).expect("server certificate");
            options.tls = Some(TlsFiles { certificates, key });
            options.authority = Some(files.clone());
            options.agent_life = life;
            made = Some(files);
        })
        .await;
        let files = made.expect("files");
        let ca = fs_err::read_to_string(&files.certificates).expect("certificate");
        let mut pool = Self { env, ca, files };
        pool.env.http = pool.client(None);
        pool
    }

    /// A client that trusts the pool's authority and shows a certificate.
    fn client(&self, shown: Option<&str>) -> reqwest::Client {
        let roots = reqwest::Certificate::from_pem_bundle(self.ca.as_bytes()).expect("roots");
        let mut builder = reqwest::Client::builder().no_proxy().tls_certs_only(roots);
        if let Some(pem) = shown {
            builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).expect("identity"));
        }
        builder.build().expect("client")
    }

    async fn enrol(&self, provider: &str) -> (Identity, String, String) {
        let folder = self.env.folder.path().join(provider);
        fs_err::create_dir_all(&folder).expect("folder");
        let mut identity = Identity::open(&folder).expect("identity");
        let body = json!({ "provider_name": provider, "ttl_ms": 60_000 });
        let join = self.env.post(&self.env.admin, "/v1/joins", body).await.expect(201);
        let client = Client::new(self.client(None), self.env.base(), join["secret"].as_str().expect("secret"));
        let joined = client.enrol(name(provider), &mut identity).await.expect("enrolled");
        (identity, joined.provider.to_string(), joined.secret)
    }

    /// Signs any certificate with the pool's own authority.
    fn signed(&self, params: &CertificateParams) -> String {
        let ca_key = KeyPair::from_pem(&fs_err::read_to_string(&self.files.key).expect("key")).expect("key");
        let issuer = Issuer::from_ca_cert_pem(&self.ca, ca_key).expect("issuer");
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &issuer).expect("signed");
        format!("{}{}", certificate.pem(), key.serialize_pem())
    }

    async fn hello(&self, http: &reqwest::Client, token: &str) -> Result<u16, reqwest::Error> {
        let body = json!({ "protocol_min": 1, "protocol_max": 1, "incarnation": 1, "boot_id": "b", "capacity": {} });
        let request = http.post(format!("{}/v1/agent/hello", self.env.base())).bearer_auth(token).json(&body);
        Ok(request.timeout(DEADLINE).send().await?.status().as_u16())
    }
}

fn shown(folder: &Path) -> String {
    let read = |name: &str| fs_err::read_to_string(folder.join(name)).expect("file");
    format!("{}{}", read("agent.crt"), read("agent.key"))
}

fn uri(params: &mut CertificateParams, provider: &str) {
    let uri = format!("urn:coracle:provider:{provider}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().expect("uri"))];
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_an_agent_makes_its_key_and_renews_its_certificate_by_itself() {
    let pool = Pool::start(Duration::from_secs(3)).await;
    let (identity, _, token) = pool.enrol("p1").await;
    let folder = pool.env.folder.path().join("p1");
    let (key, first) = (fs_err::read(folder.join("agent.key")).expect("key"), shown(&folder));
    let client = Client::new(pool.client(None), pool.env.base(), token);
    let engine: Arc<Mutex<SimulatedEngine>> = engine();
    let mut agent = Agent::new(client, Arc::clone(&engine), (), 0).enrolled(identity, pool.ca.clone()).expect("agent");
    let task = tokio::spawn(async move {
        let advance = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                engine.lock().expect("engine").advance();
            }
        };
        tokio::select! {
            ended = agent.run() => panic!("the agent gave up: {ended:?}"),
            () = advance => {}
        }
    });
    let one = pool.env.post(&pool.env.admin, "/v1/instances", instance("one")).await.expect(201)["id"].clone();
    reaches(&pool.env, &one, "running").await;
    // The certificate's clock starts ten minutes early, so that each of them is due at once: by every round a new one.
    until("a new certificate", async || (shown(&folder) != first).then_some(())).await;
    let two = pool.env.post(&pool.env.admin, "/v1/instances", instance("two")).await.expect(201)["id"].clone();
    reaches(&pool.env, &two, "running").await;
    assert_eq!(fs_err::read(folder.join("agent.key")).expect("key"), key, "the key stays");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs_err::metadata(folder.join("agent.key")).expect("key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!task.is_finished());
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a81_s04_no_certificate_but_its_own_speaks_for_a_provider() {
    let pool = Pool::start(day()).await;
    let (_, one, token) = pool.enrol("p1").await;
    let (_, two, _) = pool.enrol("p2").await;
    let own = shown(&pool.env.folder.path().join("p1"));
    let other = shown(&pool.env.folder.path().join("p2"));
    assert_eq!(pool.hello(&pool.client(Some(&own)), &token).await.expect("answer"), 200);
    assert_eq!(pool.hello(&pool.client(None), &token).await.expect("answer"), 403, "a token alone");
    assert_eq!(pool.hello(&pool.client(Some(&other)), &token).await.expect("answer"), 403, "another provider's");
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    assert_eq!(pool.hello(&pool.client(Some(&pool.signed(&params))), &token).await.expect("answer"), 403, "no name");
    params.distinguished_name.push(rcgen::DnType::CommonName, one.as_str());
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    assert_eq!(pool.hello(&pool.client(Some(&pool.signed(&params))), &token).await.expect("answer"), 403, "CN and IP");
    uri(&mut params, &one);
    assert_eq!(
        pool.hello(&pool.client(Some(&pool.signed(&params))), &token).await.expect("answer"),
        403,
        "another key"
    );
    uri(&mut params, &two);
    assert_eq!(pool.hello(&pool.client(Some(&pool.signed(&params))), &token).await.expect("answer"), 403, "another id");
    // The handshake itself fails for what is for servers, has ended, or comes from elsewhere.
    uri(&mut params, &one);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert!(pool.hello(&pool.client(Some(&pool.signed(&params))), &token).await.is_err(), "for servers");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut ended = params.clone();
    ended.not_after = rcgen::date_time_ymd(2020, 1, 1);
    assert!(pool.hello(&pool.client(Some(&pool.signed(&ended))), &token).await.is_err(), "ended");
    let key = KeyPair::generate().expect("key");
    let own_ca = params.self_signed(&key).expect("certificate").pem();
    assert!(pool.hello(&pool.client(Some(&format!("{own_ca}{}", key.serialize_pem()))), &token).await.is_err());
    // People need none, and a bad one does not make them anybody else.
    pool.env.get(&pool.env.admin, "/v1/whoami").await.expect(200);
    // A token says nothing about the key that proves it.
    for forged in
        ["eyJhbGciOiJub25lIn0.e30.", "eyJhbGciOiJIUzI1NiIsImp3ayI6e319.e30.x", "eyJ4NWMiOltdLCJraWQiOiIuLi8ifQ.e30.x"]
    {
        pool.env.get(forged, "/v1/whoami").await.expect(401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a81_an_agents_certificate_makes_no_scheduler() {
    let pool = Pool::start(day()).await;
    pool.enrol("p1").await;
    let folder = pool.env.folder.path().join("p1");
    let mut options = pool.env.options.clone();
    options.store = coracle_scheduler::store::StorePlace::Sqlite(folder.join("other.db"));
    options.tls = Some(TlsFiles { certificates: folder.join("agent.crt"), key: folder.join("agent.key") });
    let fake = coracle_scheduler::server::start(options).await.expect("start");
    let asked = pool.client(None).get(format!("https://{}/healthz", fake.address)).send().await;
    let error = format!("{:?}", asked.expect_err("an agent passes for a scheduler"));
    assert!(error.contains("InvalidPurpose"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_a_certificate_that_ends_while_connected_ends_with_the_next_request() {
    let pool = Pool::start(Duration::from_secs(2)).await;
    let (_, _, token) = pool.enrol("p1").await;
    // One connection, kept alive: only its first request shakes hands.
    let http = pool.client(Some(&shown(&pool.env.folder.path().join("p1"))));
    assert_eq!(pool.hello(&http, &token).await.expect("answer"), 200);
    until("the end", async || (pool.hello(&http, &token).await.ok() == Some(403)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_s04_a_key_is_changed_only_by_who_has_the_old_one() {
    let pool = Pool::start(day()).await;
    let (_, _, token) = pool.enrol("p1").await;
    let old = shown(&pool.env.folder.path().join("p1"));
    let folder = pool.env.folder.path().join("next");
    fs_err::create_dir_all(&folder).expect("folder");
    let next = Identity::open(&folder).expect("identity");
    let ask = async |http: reqwest::Client| -> (u16, Value) {
        let request = http.post(format!("{}/v1/agent/certificate", pool.env.base())).bearer_auth(&token);
        let answer =
            request.json(&json!({ "request": next.request().expect("request") })).send().await.expect("answer");
        (answer.status().as_u16(), answer.json().await.expect("json"))
    };
    assert_eq!(ask(pool.client(None)).await.0, 403, "a stolen token brings its own key");
    let (status, signed) = ask(pool.client(Some(&old))).await;
    assert_eq!(status, 200, "{signed}");
    let fresh = format!(
        "{}{}",
        signed["certificate"].as_str().expect("pem"),
        fs_err::read_to_string(folder.join("agent.key")).expect("key")
    );
    assert_eq!(pool.hello(&pool.client(Some(&fresh)), &token).await.expect("answer"), 200);
    assert_eq!(pool.hello(&pool.client(Some(&old)), &token).await.expect("answer"), 403, "the old key still counts");
    for junk in
        ["", "x", &"A".repeat(20_000), "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"]
    {
        let reply = pool.env.post(&token, "/v1/agent/certificate", json!({ "request": junk })).await;
        assert_eq!(reply.status, 422, "{}", reply.text);
    }
    // A machine without a key does not join, and its token is not used up by trying.
    let join = pool
        .env
        .post(&pool.env.admin, "/v1/joins", json!({ "provider_name": "p3", "ttl_ms": 60_000 }))
        .await
        .expect(201);
    let secret = join["secret"].as_str().expect("secret");
    pool.env.post(secret, "/v1/join", json!({ "name": "p3" })).await.expect(422);
    pool.env.post("crj_guess", "/v1/join", json!({ "name": "p3" })).await.expect(401);
    let request = next.request().expect("request");
    pool.env.post(secret, "/v1/join", json!({ "name": "p3", "request": request })).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_a_new_authority_takes_over_while_the_old_ones_certificates_last() {
    let pool = Pool::start(day()).await;
    let (_, _, token) = pool.enrol("p1").await;
    let old = shown(&pool.env.folder.path().join("p1"));
    let next = authority(&pool.env.folder.path().join("next-ca"));
    let mut both = fs_err::read_to_string(&next.certificates).expect("certificate");
    both.push_str(&pool.ca);
    fs_err::write(&next.certificates, both).expect("both");
    let Pool { mut env, ca, .. } = pool;
    env.options.authority = Some(next.clone());
    env.restart().await;
    let pool = Pool { env, ca, files: next };
    assert_eq!(pool.hello(&pool.client(Some(&old)), &token).await.expect("answer"), 200, "the old one is refused");
    pool.enrol("p2").await;
    let new = shown(&pool.env.folder.path().join("p2"));
    assert!(pool.hello(&pool.client(Some(&new)), &token).await.is_ok(), "the new one is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_nothing_older_than_tls_1_2_is_spoken() {
    let pool = Pool::start(day()).await;
    for version in [1u8, 2] {
        // A ClientHello of TLS 1.0 or 1.1: 32 bytes of anything, no session, one suite, no compression.
        let mut hello = vec![3, version];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0xc0, 0x13, 1, 0]);
        let length = u8::try_from(hello.len()).expect("short");
        let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
        record.extend(hello);
        let mut stream = TcpStream::connect(pool.env.address()).expect("connect");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        stream.write_all(&record).expect("write");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        // An alert, and no ServerHello.
        assert_eq!(answer.first(), Some(&21), "TLS 1.{}: {answer:?}", version - 1);
    }
    assert_eq!(pool.env.call("", Method::GET, "/healthz", None).await.status, 200);
}

/// Lists the inodes of this process's listening sockets.
fn listening() -> Vec<String> {
    let mut own: Vec<String> = Vec::new();
    for entry in fs_err::read_dir("/proc/self/fd").expect("fds").flatten() {
        if let Ok(target) = fs_err::read_link(entry.path())
            && let Some(inode) = target.to_string_lossy().strip_prefix("socket:[")
        {
            own.push(inode.trim_end_matches(']').to_owned());
        }
    }
    let mut found = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs_err::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            // 0A is LISTEN; a UDP socket without a peer takes from anybody.
            let open = words[3] == "0A" || (table.starts_with("udp") && words[2].ends_with(":0000"));
            if open && own.iter().any(|inode| inode == words[9]) {
                found.push(format!("{table} {}", words[1]));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a82_an_agent_opens_no_port() {
    let env = Env::start().await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    let before = listening();
    assert_eq!(before.len(), 1, "the scheduler's own: {before:?}");
    let _machine = crate::agent::run(&env, "p1", &token, engine());
    let id = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201)["id"].clone();
    reaches(&env, &id, "running").await;
    assert_eq!(listening(), before);
}
