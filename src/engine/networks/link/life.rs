//! What a link does until its container's watcher is gone.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use coracle_runtime::container::Identity;
use coracle_shim::Keeper;
use rustix::event::{PollFd, PollFlags, poll};

use super::{LINK_FILE, LINK_SOCKET, LinkRecord, Namespaces, Question, RETRY_TIME, Reply, Start};
use crate::engine::container::publish_json;
use crate::engine::network::{OutsidePlan, Place};
use crate::engine::networks::error::NetworksError;
use crate::engine::networks::gate::Gate;
use crate::engine::networks::holder::{self, Answer};
use crate::engine::networks::names::Member;
use crate::engine::networks::netlink::Netlink;
use crate::engine::networks::plan::Attachment;
use crate::engine::networks::rate::Rate;
use crate::engine::networks::record::{self, NetworkRecord};
use crate::engine::networks::watch;
use crate::engine::networks::wire::{self, WireError};
use crate::report;

/// Callers at once; each says one thing.
const CALLERS_MAX: usize = 16;

/// Is a network that the container is in.
pub struct Joined {
    pub network: NetworkRecord,
    pub attachment: Attachment,
    pub device: String,
    pub ips: Vec<IpAddr>,
    /// None while it cannot be brought up.
    pub holder: Option<OwnedFd>,
    pub namespace: OwnedFd,
}

/// Is the second process of a link.
pub struct Link<'a> {
    pub start: Start,
    pub namespaces: &'a Namespaces,
    listener: OwnedFd,
    pub joined: Vec<Joined>,
    pub gate: Option<Gate>,
    /// Keeps the helper that leads outside.
    keeper: Option<Keeper>,
    /// It takes the places of one that was killed.
    pub again: bool,
}

impl<'a> Link<'a> {
    pub fn bring_up(start: Start, namespaces: &'a Namespaces, again: bool) -> Result<Self, NetworksError> {
        holder::enter_outer(&namespaces.outer)?;
        let listener = wire::listen_at(&start.directory.join(LINK_SOCKET))?;
        let mut link = Self { start, namespaces, listener, joined: Vec::new(), gate: None, keeper: None, again };
        let attachments = std::mem::take(&mut link.start.attachments);
        let mut found = Vec::new();
        for attachment in &attachments {
            found.push(record::find(&link.start.root, &attachment.network)?);
        }
        let leads_out = link.start.in_default || found.iter().any(|network| !network.internal);
        let outside = link.start.outside.clone().filter(|_| leads_out);
        // The helper takes its time; without a gate it needs nothing that is made meanwhile.
        let early = outside.as_ref().filter(|_| link.start.rate.is_none());
        let keeper = std::thread::scope(|scope| {
            let (pid, directory) = (link.start.pid, link.start.directory.clone());
            let starting = early.map(|outside| {
                let place = Place::Container { pid, user: namespaces.user.as_fd(), net: namespaces.net.as_fd() };
                scope.spawn(move || outside.start(place, &directory))
            });
            let connected = attachments.into_iter().try_for_each(|attachment| link.connect(attachment, leads_out));
            let keeper = starting.map(|starting| match starting.join() {
                Ok(started) => started,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            connected.map(|()| keeper)
        })?;
        if let (Some(rate), true) = (link.start.rate, link.joined.is_empty()) {
            link.gate_in("eth0", Vec::new(), &rate, None)?;
        }
        match keeper {
            Some(Ok(keeper)) => link.keeper = Some(keeper),
            // The ports of a killed one's helper may not be free yet.
            _ if again => {}
            Some(Err(error)) => return Err(error.into()),
            None => link.settle()?,
        }
        link.again = false;
        link.publish();
        Ok(link)
    }

    /// Writes down where the namespaces are found when there is no holder to ask, and what there is.
    fn publish(&self) {
        let namespaces = self.joined.iter().map(|one| (one.network.name.clone(), one.namespace.as_raw_fd())).collect();
        let Ok(process) = Identity::of(rustix::process::getpid().as_raw_pid()) else { return };
        let attachments =
            self.joined.iter().map(|one| Attachment { ips: one.ips.clone(), ..one.attachment.clone() }).collect();
        let now = Start { attachments, ..self.start.clone() };
        // Without it a holder that was killed is replaced by this process alone.
        let _ = publish_json(&self.start.directory, LINK_FILE, &LinkRecord { process, namespaces, now }, false);
    }

    fn connect(&mut self, attachment: Attachment, leads_out: bool) -> Result<(), NetworksError> {
        let network = record::find(&self.start.root, &attachment.network)?;
        if self.joined.iter().any(|joined| joined.network.name == network.name) {
            return Err(NetworksError::Joined { container: self.called(), network: network.name });
        }
        let outer = &self.namespaces.outer;
        let held = watch::holder(&self.start.root, &network, Some((outer.as_fd(), None)), &|| {
            outer.try_clone().map_err(NetworksError::Spawn)
        })?;
        let leads_out = leads_out || !network.internal;
        let ips = self.enlist(&held.socket, &attachment, &attachment.ips, leads_out)?;
        let device = self.free_device();
        let joined = Joined { network, attachment, device, ips, holder: Some(held.socket), namespace: held.net };
        self.plug_in(&joined)?;
        self.joined.push(joined);
        self.changed();
        Ok(())
    }

    pub fn called(&self) -> String {
        self.start.names.first().cloned().unwrap_or_else(|| self.start.container.clone())
    }

    fn free_device(&self) -> String {
        let mut names = (0..).map(|number: u32| format!("eth{number}"));
        names.find(|name| !self.joined.iter().any(|joined| joined.device == *name)).unwrap_or_default()
    }

    /// Takes a place in a network's list; gives the addresses.
    fn enlist(
        &self,
        holder: &OwnedFd,
        attachment: &Attachment,
        ips: &[IpAddr],
        outside: bool,
    ) -> Result<Vec<IpAddr>, NetworksError> {
        let mut names = self.start.names.clone();
        names.extend(attachment.aliases.iter().cloned());
        let member = Member {
            container: self.start.container.clone(),
            names,
            ips: ips.to_vec(),
            servers: self.start.servers.clone(),
            outside: outside && self.start.outside.is_some(),
        };
        match wire::ask(holder, &holder::Question::Join { member, must: !self.again }, &[])?.0 {
            Answer::Joined { ips } => Ok(ips),
            Answer::Refused { reason } => Err(NetworksError::Link(reason)),
            Answer::Handles => Err(WireError::Gone.into()),
        }
    }

    /// Says whether one of the networks leads outside, so that the container may be led there.
    fn leads_out(&self) -> bool {
        self.start.in_default || self.joined.iter().any(|joined| !joined.network.internal)
    }

    fn wants_helper(&self) -> bool {
        self.keeper.is_none() && self.start.outside.is_some() && self.leads_out()
    }

    /// Starts or ends the helper as the networks want it, and tells the name servers.
    fn settle(&mut self) -> Result<(), NetworksError> {
        match (self.leads_out(), self.keeper.take()) {
            (true, None) => {
                let Some(outside) = self.start.outside.clone() else { return Ok(()) };
                self.keeper = Some(self.lead_out(&outside)?);
            }
            (false, Some(keeper)) => keeper.finish(),
            (_, keeper) => {
                self.keeper = keeper;
                return Ok(());
            }
        }
        let outside = self.leads_out();
        for joined in &self.joined {
            if let Some(holder) = &joined.holder {
                self.enlist(holder, &joined.attachment, &joined.ips, outside)?;
            }
        }
        Ok(())
    }

    fn lead_out(&self, outside: &OutsidePlan) -> Result<Keeper, NetworksError> {
        let Some(gate) = &self.gate else {
            let (user, net) = (self.namespaces.user.as_fd(), self.namespaces.net.as_fd());
            let place = Place::Container { pid: self.start.pid, user, net };
            return Ok(outside.start(place, &self.start.directory)?);
        };
        let place = Place::Gate { net: gate.net.as_fd(), behind: gate.behind };
        let keeper = outside.start(place, &self.start.directory)?;
        match gate.open() {
            Ok(()) => Ok(keeper),
            Err(error) => {
                keeper.finish();
                Err(error)
            }
        }
    }

    /// Changes the rates of the gate.
    fn change_rate(&mut self, rate: Rate) -> Result<(), NetworksError> {
        let Some(gate) = &self.gate else { return Err(NetworksError::NoRate(self.called())) };
        gate.shape(&rate)?;
        self.start.rate = Some(rate);
        self.publish();
        Ok(())
    }

    fn disconnect(&mut self, network: &str) -> Result<(), NetworksError> {
        let place = self.joined.iter().position(|joined| joined.network.name == network);
        let missing = || NetworksError::NotJoined { container: self.called(), network: network.to_owned() };
        let joined = self.joined.remove(place.ok_or_else(missing)?);
        Netlink::open_in(&joined.namespace)?.remove(&self.outer_device(&joined.device))?;
        self.changed();
        self.settle()
    }

    fn join(&mut self, attachment: Attachment, outside: Option<OutsidePlan>) -> Result<(), NetworksError> {
        let network = attachment.network.clone();
        self.start.outside = self.start.outside.take().or(outside);
        self.connect(attachment, self.leads_out())?;
        let settled = self.settle();
        if settled.is_err() {
            // The first reason is the one that is told.
            let _ = self.disconnect(&network);
        }
        settled
    }

    fn changed(&self) {
        self.write_servers();
        self.publish();
    }

    /// Names the networks' servers in the container's resolv.conf, in place: the file is mounted.
    fn write_servers(&self) {
        let path = self.start.directory.join("resolv.conf");
        let text = fs_err::read_to_string(&path).unwrap_or_default();
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with("nameserver ")).map(str::to_owned).collect();
        let gateways = self.joined.iter().map(|joined| joined.network.v4.gateway);
        lines.extend(gateways.map(|ip| format!("nameserver {ip}")));
        // The container goes on with the names it had.
        let _ = fs_err::write(&path, lines.join("\n") + "\n");
    }

    /// Serves until the watcher is gone.
    pub fn live(&mut self, watcher: &OwnedFd) {
        let mut callers: Vec<OwnedFd> = Vec::new();
        loop {
            let fds: Vec<BorrowedFd<'_>> = [watcher.as_fd(), self.listener.as_fd()]
                .into_iter()
                .chain(callers.iter().map(AsFd::as_fd))
                .chain(self.joined.iter().filter_map(|joined| joined.holder.as_ref()).map(AsFd::as_fd))
                .chain(self.keeper.iter().map(Keeper::end))
                .collect();
            let mut polled: Vec<PollFd<'_>> =
                fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
            let complete = self.joined.iter().all(|joined| joined.holder.is_some()) && !self.wants_helper();
            if poll(&mut polled, if complete { None } else { Some(&RETRY_TIME) }).is_err() {
                continue;
            }
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            // It says nothing: this is its end.
            if ready[0] {
                return;
            }
            let mut others = ready[2 + callers.len()..].iter();
            for joined in self.joined.iter_mut().filter(|joined| joined.holder.is_some()) {
                // A holder says nothing unasked: this is its end.
                if others.next() == Some(&true) {
                    joined.holder = None;
                }
            }
            if others.next() == Some(&true)
                && let Some(keeper) = self.keeper.take()
            {
                keeper.finish();
            }
            self.come_back();
            for place in (2..2 + callers.len()).rev().filter(|place| ready[*place]) {
                // Whoever hangs up hears nothing.
                let _ = self.hear(&callers.remove(place - 2));
            }
            if ready[1]
                && callers.len() < CALLERS_MAX
                && let Some(socket) = wire::accept(&self.listener)
            {
                callers.push(socket);
            }
        }
    }

    /// Takes the places in lists once more whose holders have gone, and starts a helper that has gone.
    fn come_back(&mut self) {
        for place in 0..self.joined.len() {
            let joined = &self.joined[place];
            if joined.holder.is_some() {
                continue;
            }
            let known = Some((self.namespaces.outer.as_fd(), Some(joined.namespace.as_fd())));
            let outer = || self.namespaces.outer.try_clone().map_err(NetworksError::Spawn);
            let outside = self.leads_out();
            let back = watch::holder(&self.start.root, &joined.network, known, &outer).and_then(|held| {
                self.enlist(&held.socket, &joined.attachment, &joined.ips, outside).map(|_| held.socket)
            });
            // Addresses work meanwhile; names come back with the next holder.
            self.joined[place].holder = back.ok();
        }
        if self.wants_helper() {
            // Tried again in a while.
            let _ = self.settle();
        }
    }

    fn hear(&mut self, caller: &OwnedFd) -> Result<(), NetworksError> {
        let (question, _) = wire::receive::<Question>(caller)?;
        let reply = |result: Result<(), NetworksError>| match result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused { reason: report::chain(&error) },
        };
        let answer = match question {
            Question::Connect { attachment, outside } => reply(self.join(attachment, outside)),
            Question::Rate { rate } => reply(self.change_rate(rate)),
            Question::Drops => match self.gate.as_ref().map(Gate::drops) {
                Some(Ok((to, from))) => Reply::Drops { to, from },
                _ => Reply::Drops { to: 0, from: 0 },
            },
            Question::Disconnect { network } => reply(self.disconnect(&network)),
        };
        Ok(wire::send(caller, &answer, &[])?)
    }
}
