//! Requests about what runs where: providers, instances, services, jobs, volumes, secrets.

use super::*;

pub(super) fn grant_provider(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let role = if matches!(wish, Wish::SetTier { .. }) { Role::Admin } else { Role::Member };
    let actor = need(actor, role)?;
    // Every user may know every provider; only its own group may touch it.
    let own = |state: &State, id: ProviderId| {
        let group = state.providers.get(&id).map(|found| found.group).ok_or(Refusal::NotFound("provider"))?;
        if actor.sees(group) { Ok(()) } else { Err(Refusal::Forbidden) }
    };
    match wish {
        Wish::SetTier { id, tier } => {
            own(state, id)?;
            state.provider_mut(id).ok_or(Refusal::NotFound("provider"))?.tier = tier;
            state.live.queue.gain(id);
            Ok(Answer::Object(Key::Provider(id)))
        }
        Wish::Drain { id, within_ms } => {
            own(state, id)?;
            if within_ms > DRAIN_MS {
                return invalid("within_ms", "above 30 days");
            }
            drain::drain(state, now, id, Some(Drain { deadline_ms: now + within_ms }));
            Ok(Answer::Object(Key::Provider(id)))
        }
        Wish::Undrain { id } => {
            own(state, id)?;
            drain::drain(state, now, id, None);
            Ok(Answer::Object(Key::Provider(id)))
        }
        Wish::DeleteProvider { id } => {
            own(state, id)?;
            provider::remove(state, now, id);
            Ok(Answer::Gone)
        }
        _ => Err(Refusal::Forbidden),
    }
}

/// Checks what only the state can tell about a spec.
fn check_spec(state: &State, group: GroupId, spec: &InstanceSpec) -> Result<(), Refusal> {
    spec.validate()?;
    for mount in &spec.volumes {
        if state.volumes.get(&mount.volume).is_none_or(|volume| volume.group != group) {
            return Err(Refusal::NotFound("volume"));
        }
    }
    for mount in &spec.secrets {
        if state.secrets.get(&mount.secret).is_none_or(|secret| secret.group != group) {
            return Err(Refusal::NotFound("secret"));
        }
    }
    let quota = state.groups.get(&group).and_then(|group| group.quota.resources);
    if spec.class == Class::Normal
        && let Some((name, short)) = quota.and_then(|quota| spec.resources.shortage(&quota))
    {
        return Err(Refusal::Quota(format!("one instance wants {short} more {name} than the group may ever hold")));
    }
    Ok(())
}

pub(super) fn grant_instance(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, if matches!(wish, Wish::DryRun { .. }) { Role::Reader } else { Role::Member })?;
    match wish {
        Wish::CreateInstance { group, name, mut spec } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            spec.normalise();
            check_spec(state, group, &spec)?;
            count_quota(state, group, 1)?;
            let unnamed = name.is_none();
            let name = match name {
                Some(name) => name,
                None => format!("i-{:08x}", state.random.number() >> 32).parse().map_err(|_| Refusal::Forbidden)?,
            };
            if state.live.instance_names.contains_key(&(group, name.clone())) {
                return Err(taken("instance", &name));
            }
            let user = actor.user.ok_or(Refusal::Forbidden)?;
            let new = New {
                group,
                user,
                owner: Owner::User,
                name,
                unnamed,
                spec: *spec,
                pinned: None,
                gang: None,
                time_limit_ms: None,
            };
            Ok(Answer::Object(Key::Instance(instance::create(state, now, new))))
        }
        Wish::MoveInstance { id, to } => {
            seen(actor, state.instances.get(&id).map(|found| found.group), "instance")?;
            moving::wish(state, now, id, to)?;
            Ok(Answer::Object(Key::Instance(id)))
        }
        Wish::HaltInstance { id } | Wish::ResumeInstance { id } => {
            seen(actor, state.instances.get(&id).map(|found| found.group), "instance")?;
            match wish {
                Wish::HaltInstance { .. } => halt::halt(state, now, id)?,
                _ => halt::resume(state, now, id)?,
            }
            Ok(Answer::Object(Key::Instance(id)))
        }
        Wish::DeleteInstance { id } => {
            seen(actor, state.instances.get(&id).map(|found| found.group), "instance")?;
            instance::stop(state, now, id, StopReason::Asked);
            Ok(Answer::Object(Key::Instance(id)))
        }
        Wish::DryRun { group, mut spec } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            spec.normalise();
            check_spec(state, group, &spec)?;
            Ok(Answer::Plan(dry_run(state, group, *spec)))
        }
        _ => Err(Refusal::Forbidden),
    }
}

fn dry_run(state: &mut State, group: GroupId, spec: InstanceSpec) -> Explanation {
    let ask = Ask::ahead(state, group, Owner::User, spec);
    let mut explanation = place::choose(state, &ask).explanation;
    if ask.spec.class == Class::Normal && !crate::core::queue::within_quota(state, group, &ask.spec.resources) {
        explanation.hints.insert(0, "the group's quota is used up just now".to_owned());
    }
    explanation
}

fn count_quota(state: &State, group: GroupId, more: usize) -> Result<(), Refusal> {
    room(state.instances.len() + more - 1, INSTANCES_MAX, "500000 instances")?;
    let most = state.groups.get(&group).and_then(|group| group.quota.instances);
    let held = state.live.used.get(&group).map_or(0, |used| used.instances) as usize;
    if most.is_some_and(|most| held + more > most as usize) {
        return Err(Refusal::Quota(format!(
            "the group has {held} unfinished instances and may have {}",
            most.unwrap_or(0)
        )));
    }
    Ok(())
}

pub(super) fn grant_service(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Member)?;
    match wish {
        Wish::CreateService { group, mut spec } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            room(state.services.len(), OBJECTS_MAX, "100000 services")?;
            spec.template.normalise();
            spec.validate()?;
            check_spec(state, group, &spec.template)?;
            count_quota(state, group, spec.replicas.max(1) as usize)?;
            if state.live.service_names.contains_key(&(group, spec.name.clone())) {
                return Err(taken("service", &spec.name));
            }
            let user = actor.user.ok_or(Refusal::Forbidden)?;
            let id = ServiceId::new(state.random.id(now));
            state.live.service_names.insert((group, spec.name.clone()), id);
            let spec = *spec;
            state.put_service(Service {
                id,
                group,
                user,
                spec,
                revision: 1,
                made: 0,
                halted: None,
                created_at_ms: now,
                removing: false,
            });
            service::changed(state, now, id);
            Ok(Answer::Object(Key::Service(id)))
        }
        Wish::UpdateService { id, mut spec } => {
            let found = state.services.get(&id).cloned();
            let group = seen(actor, found.as_ref().map(|found| found.group), "service")?;
            let found = found.ok_or(Refusal::NotFound("service"))?;
            spec.template.normalise();
            spec.validate()?;
            check_spec(state, group, &spec.template)?;
            if spec.name != found.spec.name || spec.global != found.spec.global {
                return invalid("spec", "name and global cannot change");
            }
            let more = spec.replicas.saturating_sub(found.spec.replicas) as usize;
            if more > 0 {
                count_quota(state, group, more)?;
            }
            if found.removing {
                return Err(Refusal::Conflict("the service is being removed".to_owned()));
            }
            let service = state.service_mut(id).ok_or(Refusal::NotFound("service"))?;
            service.revision += u64::from(service.spec.template != spec.template);
            service.halted = None;
            service.spec = *spec;
            service::changed(state, now, id);
            Ok(Answer::Object(Key::Service(id)))
        }
        Wish::DeleteService { id } => {
            seen(actor, state.services.get(&id).map(|found| found.group), "service")?;
            state.service_mut(id).ok_or(Refusal::NotFound("service"))?.removing = true;
            service::changed(state, now, id);
            Ok(Answer::Object(Key::Service(id)))
        }
        _ => Err(Refusal::Forbidden),
    }
}

pub(super) fn grant_job(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Member)?;
    match wish {
        Wish::CreateJob { group, mut spec } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            room(state.jobs.len(), OBJECTS_MAX, "100000 jobs")?;
            spec.template.normalise();
            spec.validate()?;
            check_spec(state, group, &spec.template)?;
            count_quota(state, group, spec.count() as usize)?;
            for other in &spec.depends_on {
                // A job can only wait for jobs that exist already, so there are no circles.
                seen(actor, state.jobs.get(other).filter(|job| job.group == group).map(|job| job.group), "job")?;
            }
            if state.live.job_names.contains_key(&(group, spec.name.clone())) {
                return Err(taken("unfinished job", &spec.name));
            }
            let user = actor.user.ok_or(Refusal::Forbidden)?;
            let id = JobId::new(state.random.id(now));
            let spec = *spec;
            state.put_job(Job {
                id,
                group,
                user,
                spec,
                state: JobState::Waiting,
                reason: String::new(),
                made: 0,
                succeeded: 0,
                failed: 0,
                stopped: 0,
                created_at_ms: now,
                ended_at_ms: None,
            });
            job::begin(state, now, id);
            Ok(Answer::Object(Key::Job(id)))
        }
        Wish::CancelJob { id } => {
            seen(actor, state.jobs.get(&id).map(|found| found.group), "job")?;
            job::cancel(state, now, id);
            Ok(Answer::Object(Key::Job(id)))
        }
        _ => Err(Refusal::Forbidden),
    }
}

pub(super) fn grant_volume(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Member)?;
    match wish {
        Wish::CreateVolume { group, name, size_bytes } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            room(state.volumes.len(), OBJECTS_MAX, "100000 volumes")?;
            if !(1..=Resources::LIMIT).contains(&size_bytes) {
                return invalid("size_bytes", "not between 1 and 2^60");
            }
            if state.live.volume_names.contains_key(&(group, name.clone())) {
                return Err(taken("volume", &name));
            }
            let id = VolumeId::new(state.random.id(now));
            state.live.volume_names.insert((group, name.clone()), id);
            state.put_volume(Volume { id, name, group, size_bytes, provider: None, created_at_ms: now });
            Ok(Answer::Object(Key::Volume(id)))
        }
        Wish::DeleteVolume { id } => {
            seen(actor, state.volumes.get(&id).map(|found| found.group), "volume")?;
            if state.live.volume_users.get(&id).is_some_and(|users| !users.is_empty()) {
                return Err(Refusal::Conflict("an unfinished instance uses the volume".to_owned()));
            }
            volume::forget(state, id);
            Ok(Answer::Gone)
        }
        _ => Err(Refusal::Forbidden),
    }
}

pub(super) fn grant_secret(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Member)?;
    match wish {
        Wish::CreateSecret { group, name, sealed } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            room(state.secrets.len(), OBJECTS_MAX, "100000 secrets")?;
            if state.live.secret_names.contains_key(&(group, name.clone())) {
                return Err(taken("secret", &name));
            }
            let user = actor.user.ok_or(Refusal::Forbidden)?;
            let id = SecretId::new(state.random.id(now));
            state.live.secret_names.insert((group, name.clone()), id);
            state.put_secret(StoredSecret { id, name, group, user, sealed, created_at_ms: now });
            Ok(Answer::Object(Key::Secret(id)))
        }
        Wish::DeleteSecret { id } => {
            let group = seen(actor, state.secrets.get(&id).map(|found| found.group), "secret")?;
            let asks = |spec: &InstanceSpec| spec.secrets.iter().any(|mount| mount.secret == id);
            let wanted = state.instances.values().any(|found| !found.state.is_final() && asks(&found.spec))
                || state.services.values().any(|found| asks(&found.spec.template))
                || state.jobs.values().any(|found| found.ended_at_ms.is_none() && asks(&found.spec.template));
            if wanted {
                return Err(Refusal::Conflict("an unfinished instance, service or job uses the secret".to_owned()));
            }
            if let Some(found) = state.secrets.get(&id) {
                let name = (group, found.name.clone());
                state.live.secret_names.remove(&name);
            }
            state.erase(Key::Secret(id));
            Ok(Answer::Gone)
        }
        _ => Err(Refusal::Forbidden),
    }
}
