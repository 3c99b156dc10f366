
			delete from job_failure
			where domain_uid = $1 and job_id = $2 and data_key_id > $4 and data_key_id <= $5 and not acknowledged and (
				select count(*)
				from data_key
				where data_key.domain_uid = $1 and data_key.data_key_id = job_failure.data_key_id
					and data_key.version = job_failure.version and data_key.key_epoch = $3) = 0;

			insert into data_key (
	domain_uid, data_key_id, data_key_uid, ciphertext, context, key_spec, key_epoch,
	key_material_id, kms_request_id, abandoned, version, create_time, update_time)
			select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13
			where not exists (
				select 1
				from data_key_tombstone
				where domain_uid = $1 and data_key_id = $2)
			on conflict do nothing;

			insert into job_failure (domain_uid, job_id, data_key_id, data_key_uid, version, class, message, fail_time, acknowledged)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
			on conflict (domain_uid, job_id, data_key_id) do update
			set data_key_uid = excluded.data_key_uid, version = excluded.version, class = excluded.class,
				message = excluded.message, fail_time = excluded.fail_time, acknowledged = excluded.acknowledged;

			insert into job_moved (domain_uid, job_id, source_key, source_material, new_material, moved)
			values ($1, $2, $3, $4, $5, $6)
			on conflict (domain_uid, job_id, source_key, source_material, new_material) do update
			set moved = job_moved.moved + excluded.moved;

			insert into shard (
				domain_uid, job_id, shard_index, low, high, cursor,
				again, finished, done, relabelled, failed,
				pace_rows, pace_calls, pace_throttled, pace_time, lease_owner, lease_seq, lease_until)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18);

			select count(*), coalesce(max(data_key_id), ''), count(case when 
				not abandoned and key_epoch in (
					select key_epoch
					from domain_key
					where domain_uid = $1 and kms_key = $4) then 1 end)
			from (
				select data_key_id, key_epoch, abandoned
				from data_key
				where domain_uid = $1 and data_key_id > $2
				order by data_key_id
				limit $3 + 0
			) as stretch;

			select count(*), coalesce(max(data_key_id), ''), count(case when true then 1 end)
			from (
				select data_key_id, key_epoch, abandoned
				from data_key
				where domain_uid = $1 and data_key_id > $2
				order by data_key_id
				limit $3 + 0
			) as stretch;

			select data_key_id
			from data_key
			where domain_uid = $1 and data_key_id > $2
			order by data_key_id
			limit 1 offset $3 + 0;

			select data_key_id
			from job_failure
			where domain_uid = $1 and job_id = $2 and data_key_id > $3
			order by data_key_id
			limit 1 offset $4 - 1;

			select end_time
			from kms_grant
			where (kms_grant.state <> 'FAILED' or kms_grant.kms_grant_id <> '') and domain_uid = $1 and key_epoch = $2 and kind = $3
			order by end_time desc
			limit 1;

			update data_key
			set ciphertext = $3, key_material_id = $4, kms_request_id = $5,
				key_epoch = $6, version = version + 1, update_time = $7
			where
	domain_uid = $1 and data_key_id = $2
	and data_key_uid = $8 and version = $9 and key_epoch = $10;

		delete from data_key
		where domain_uid = $1 and data_key_id = $2 and data_key_uid = $3 and version = $4;

		delete from data_key
		where domain_uid = $1 and data_key_id in (
			select data_key_id
			from data_key
			where domain_uid = $1
			order by data_key_id
			limit $2 + 0);

		delete from listed_key
		where kms_key = $1 and use_time <= $2
			and not exists (
				select 1
				from domain_key
				where domain_key.kms_key = $1 and domain_key.state not in ('RETIRED', 'ABANDONED'))
			and not exists (
				select 1
				from kms_grant
				where kms_grant.kms_key = $1 and kms_grant.state in ('INTENDED', 'LIVE', 'RETIRING'));

		delete from replica
		where replica_id = $1;

		delete from replica
		where replica_id in (
			select replica_id
			from replica
			where until_time <= $1
		);

		delete from request
		where (caller, method, request_id) in (
			select caller, method, request_id
			from request
			where until_time <= $1 and (done or until_time <= $2)
			order by until_time
			limit $3 + 0
		);

		delete from self_inventory
		where domain_uid = $1 and grant_uid = $2 and key_epoch = $3;

		delete from shard
		where domain_uid = $1 and job_id = $2
		returning lease_seq;

		insert into audit_event (event_time, caller, action, domain_uid, resource, outcome, request_id, kms_request_id, detail)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9);

		insert into data_key_tombstone (domain_uid, data_key_id, data_key_uid, delete_time)
		select domain_uid, data_key_id, data_key_uid, $2
		from data_key
		where domain_uid = $1
		order by data_key_id
		limit $3 + 0;

		insert into data_key_tombstone (domain_uid, data_key_id, data_key_uid, delete_time)
		values ($1, $2, $3, $4);

		insert into domain (
	domain_uid, domain_id, display_name, region, state, inaccessible_since,
	reserved_key, reserved_value, kms_key, kms_key_given, key_epoch, last_epoch,
	change_job, change_key, change_epoch, key_accounts, import_sources, labels,
	version, create_time, update_time)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
		on conflict do nothing;

		insert into domain_grant (
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
		on conflict do nothing;

		insert into domain_key (
	domain_uid, key_epoch, kms_key, state, activate_time, replace_time, retire_time)
		values ($1, $2, $3, $4, $5, $6, $7)
		on conflict do nothing;

		insert into job (
			domain_uid, job_id, kind, phase, state,
			block_reason, block_side, block_message, block_since, block_next_probe,
			source_epoch, target_epoch, source_key, target_key, target_given, target_material,
			reason, caller, priority, allow_inaccessible, accept_mismatch, undo, fail_reason, fail_message, wait_message, wait_until,
			prepare_time, grant_time, switch_time, last_move_time,
			close_time, retire_time, list_time,
			grants_retired, estimated_rows, verified_rows, verify_cursor, verify_seen, verify_rows,
			lease_owner, lease_seq, lease_until,
			version, create_time, update_time, end_time)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
			$20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45, $46)
		on conflict do nothing;

		insert into kms_grant (
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
		on conflict do nothing;

		insert into listed_key (kms_key, list_time, use_time)
		select kms_key, 0, $3
		from domain_key
		where domain_uid = $1 and key_epoch = $2
		on conflict (kms_key) do update
		set use_time = excluded.use_time;

		insert into periodic (name, owner, take_time)
		values ($1, $2, $3)
		on conflict (name) do update
		set owner = excluded.owner, take_time = excluded.take_time
		where periodic.take_time <= $4;

		insert into replica (replica_id, until_time, budgets)
		values ($1, $2, $3)
		on conflict (replica_id) do update
		set until_time = excluded.until_time, budgets = excluded.budgets;

		insert into request (caller, method, request_id, hash, resource, done, until_time)
		values ($1, $2, $3, $4, $5, $6, $7)
		on conflict (caller, method, request_id) do update
		set hash = excluded.hash, resource = excluded.resource, done = excluded.done, until_time = excluded.until_time;

		insert into self_inventory (
	domain_uid, grant_uid, key_epoch, kind, caller, pass_id, begin_time, items, given_up, reason, settle_time)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		on conflict (domain_uid, grant_uid, key_epoch) do update
		set kind = excluded.kind, caller = excluded.caller, pass_id = excluded.pass_id, begin_time = excluded.begin_time,
			items = excluded.items, given_up = excluded.given_up, reason = excluded.reason, settle_time = excluded.settle_time;

		select 
	domain_uid, data_key_id, data_key_uid, ciphertext, context, key_spec, key_epoch,
	key_material_id, kms_request_id, abandoned, version, create_time, update_time
		from data_key
		where domain_uid = $1 and data_key_id = $2;

		select 
	domain_uid, data_key_id, data_key_uid, ciphertext, context, key_spec, key_epoch,
	key_material_id, kms_request_id, abandoned, version, create_time, update_time
		from data_key
		where domain_uid = $1 and data_key_id > $2
		order by data_key_id
		limit $3 + 0;

		select 
	domain_uid, data_key_id, data_key_uid, ciphertext, context, key_spec, key_epoch,
	key_material_id, kms_request_id, abandoned, version, create_time, update_time
		from json_each($2) as wanted
		cross join data_key
		where domain_uid = $1 and data_key_id = wanted.value;

		select 
	domain_uid, domain_id, display_name, region, state, inaccessible_since,
	reserved_key, reserved_value, kms_key, kms_key_given, key_epoch, last_epoch,
	change_job, change_key, change_epoch, key_accounts, import_sources, labels,
	version, create_time, update_time
		from domain
		where domain_id = $1 and state <> 'DELETED';

		select 
	domain_uid, domain_id, display_name, region, state, inaccessible_since,
	reserved_key, reserved_value, kms_key, kms_key_given, key_epoch, last_epoch,
	change_job, change_key, change_epoch, key_accounts, import_sources, labels,
	version, create_time, update_time
		from domain
		where domain_id > $1 and state <> 'DELETED'
		order by domain_id
		limit $2 + 0;

		select 
	domain_uid, domain_id, display_name, region, state, inaccessible_since,
	reserved_key, reserved_value, kms_key, kms_key_given, key_epoch, last_epoch,
	change_job, change_key, change_epoch, key_accounts, import_sources, labels,
	version, create_time, update_time
		from domain
		where domain_uid = $1;

		select 
	domain_uid, domain_id, display_name, region, state, inaccessible_since,
	reserved_key, reserved_value, kms_key, kms_key_given, key_epoch, last_epoch,
	change_job, change_key, change_epoch, key_accounts, import_sources, labels,
	version, create_time, update_time
		from domain
		where state = 'DELETED' and (
			exists (
				select 1
				from domain_key
				where domain_key.domain_uid = domain.domain_uid and domain_key.state not in ('RETIRED', 'ABANDONED'))
			or exists (
				select 1
				from kms_grant
				where kms_grant.domain_uid = domain.domain_uid and kms_grant.state not in ('RETIRED', 'FAILED', 'GONE')))
		order by domain_uid
		limit $1 + 0;

		select 
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time
		from domain_grant
		where domain_uid = $1 and domain_grant.state in ('CREATING', 'ACTIVE')
		order by grant_id;

		select 
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time
		from domain_grant
		where domain_uid = $1 and grant_id = $2;

		select 
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time
		from domain_grant
		where domain_uid = $1 and grant_id > $2 and not worker
		order by grant_id
		limit $3 + 0;

		select 
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time
		from domain_grant
		where domain_uid = $1 and grant_uid = $2;

		select 
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time
		from domain_grant
		where domain_uid = $1 and inventory = 'SELF' and grantee = $2;

		select 
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time
		from domain_grant
		where state = 'CREATING' and create_time <= $1
		order by create_time, domain_uid, grant_id
		limit $2 + 0;

		select 
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time
		from domain_grant
		where state in ('CREATING', 'ACTIVE') and expire_time > 0 and expire_time <= $1
		order by expire_time, domain_uid, grant_id
		limit $2 + 0;

		select 
	domain_uid, grant_id, grant_uid, worker, grantee, operations, constraint_subset,
	constraint_equals, inventory, state, expire_time, version, create_time, update_time, epoch
		from domain_grant
		cross join (
			select domain_uid as of_domain, grant_uid as of_grant, key_epoch as epoch
			from kms_grant
			where (kms_grant.state <> 'FAILED' or kms_grant.kms_grant_id <> '')) as made
		where domain_uid = $1 and inventory = 'SELF' and epoch >= $2
			and of_domain = domain_uid and of_grant = grant_uid;

		select 
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time
		from kms_grant
		where domain_uid = $1 and grant_uid = $2
		order by key_epoch, kind, attempt;

		select 
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time
		from kms_grant
		where kms_grant.state not in ('RETIRED', 'FAILED', 'GONE') and state <> 'INTENDED' and domain_uid = $1 and key_epoch >= $2 and key_epoch < $3
		order by grant_uid, key_epoch, kind, attempt;

		select 
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time
		from kms_grant
		where kms_grant.state not in ('RETIRED', 'FAILED', 'GONE') and state <> 'INTENDED' and domain_uid = $1 and key_epoch >= $2 and key_epoch < $3 and kind = $4
		order by grant_uid, key_epoch, kind, attempt;

		select 
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time
		from kms_grant
		where kms_grant.state not in ('RETIRED', 'FAILED', 'GONE') and state not in ('LIVE', 'RETIRING') and domain_uid = $1 and key_epoch >= $2 and key_epoch < $3
		order by grant_uid, key_epoch, kind, attempt;

		select 
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time
		from kms_grant
		where kms_grant.state not in ('RETIRED', 'FAILED', 'GONE') and state not in ('LIVE', 'RETIRING') and domain_uid = $1 and key_epoch >= $2 and key_epoch < $3 and kind = $4
		order by grant_uid, key_epoch, kind, attempt;

		select 
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time
		from kms_grant
		where kms_key = $1 and kms_grant.state in ('INTENDED', 'LIVE', 'RETIRING')
		order by domain_uid, grant_uid, key_epoch, kind, attempt;

		select 
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time
		from kms_grant
		where name = $1;

		select 
	domain_uid, grant_uid, key_epoch, kind, attempt, worker, name, kms_key,
	kms_grant_id, state, intend_time, live_time, end_time, next_try, miss_time
		from kms_grant
		where state in ('INTENDED', 'RETIRING') and next_try <= $1
		order by next_try, domain_uid, grant_uid, key_epoch, kind, attempt
		limit $2 + 0;

		select 
	domain_uid, grant_uid, key_epoch, kind, caller, pass_id, begin_time, items, given_up, reason, settle_time
		from self_inventory
		where domain_uid = $1 and key_epoch >= $2
		order by key_epoch, grant_uid;

		select 
	domain_uid, key_epoch, kms_key, state, activate_time, replace_time, retire_time
		from domain_key
		where domain_uid = $1
		order by key_epoch;

		select 
	job.domain_uid, job.job_id, job.kind, job.phase, job.state,
	job.block_reason, job.block_side, job.block_message, job.block_since, job.block_next_probe,
	job.source_epoch, job.target_epoch, job.source_key, job.target_key, job.target_given, job.target_material,
	job.reason, job.caller, job.priority, job.allow_inaccessible, job.accept_mismatch, job.undo, job.fail_reason, job.fail_message, job.wait_message, job.wait_until,
	job.prepare_time, job.grant_time, job.switch_time, job.last_move_time,
	job.close_time, job.retire_time, job.list_time,
	job.grants_retired, job.estimated_rows, job.verified_rows, job.verify_cursor, job.verify_seen, job.verify_rows,
	job.lease_owner, job.lease_seq, job.lease_until,
	job.version, job.create_time, job.update_time, job.end_time
		from job
		where domain_uid = $1 and job_id = $2;

		select 
	job.domain_uid, job.job_id, job.kind, job.phase, job.state,
	job.block_reason, job.block_side, job.block_message, job.block_since, job.block_next_probe,
	job.source_epoch, job.target_epoch, job.source_key, job.target_key, job.target_given, job.target_material,
	job.reason, job.caller, job.priority, job.allow_inaccessible, job.accept_mismatch, job.undo, job.fail_reason, job.fail_message, job.wait_message, job.wait_until,
	job.prepare_time, job.grant_time, job.switch_time, job.last_move_time,
	job.close_time, job.retire_time, job.list_time,
	job.grants_retired, job.estimated_rows, job.verified_rows, job.verify_cursor, job.verify_seen, job.verify_rows,
	job.lease_owner, job.lease_seq, job.lease_until,
	job.version, job.create_time, job.update_time, job.end_time
		from job
		where domain_uid = $1 and job_id > $2
		order by job_id
		limit $3 + 0;

		select 
	job.domain_uid, job.job_id, job.kind, job.phase, job.state,
	job.block_reason, job.block_side, job.block_message, job.block_since, job.block_next_probe,
	job.source_epoch, job.target_epoch, job.source_key, job.target_key, job.target_given, job.target_material,
	job.reason, job.caller, job.priority, job.allow_inaccessible, job.accept_mismatch, job.undo, job.fail_reason, job.fail_message, job.wait_message, job.wait_until,
	job.prepare_time, job.grant_time, job.switch_time, job.last_move_time,
	job.close_time, job.retire_time, job.list_time,
	job.grants_retired, job.estimated_rows, job.verified_rows, job.verify_cursor, job.verify_seen, job.verify_rows,
	job.lease_owner, job.lease_seq, job.lease_until,
	job.version, job.create_time, job.update_time, job.end_time
		from job
		where domain_uid = $1 and kind = 'KEY_CHANGE'
		order by create_time desc, job_id desc
		limit 1;

		select 
	job.domain_uid, job.job_id, job.kind, job.phase, job.state,
	job.block_reason, job.block_side, job.block_message, job.block_since, job.block_next_probe,
	job.source_epoch, job.target_epoch, job.source_key, job.target_key, job.target_given, job.target_material,
	job.reason, job.caller, job.priority, job.allow_inaccessible, job.accept_mismatch, job.undo, job.fail_reason, job.fail_message, job.wait_message, job.wait_until,
	job.prepare_time, job.grant_time, job.switch_time, job.last_move_time,
	job.close_time, job.retire_time, job.list_time,
	job.grants_retired, job.estimated_rows, job.verified_rows, job.verify_cursor, job.verify_seen, job.verify_rows,
	job.lease_owner, job.lease_seq, job.lease_until,
	job.version, job.create_time, job.update_time, job.end_time
		from job
		where job.state in ('RUNNING', 'PAUSED', 'BLOCKED') and priority = $7 and (create_time, domain_uid, job_id) > ($3, $4, $5)
			and (lease_until <= $1 or lease_owner = $2)
			and (
				state = 'BLOCKED' and block_reason <> 'CONTEXT_OR_KEY_MISMATCH' and block_next_probe <= $1
				or state = 'RUNNING' and wait_until <= $1
			)
			and not (
				job.state in ('RUNNING', 'PAUSED', 'BLOCKED') and job.state = 'RUNNING' and (job.phase = 'REENCRYPTING' or job.kind = 'VERIFY') and wait_message = ''
				and exists (
					select 1
					from shard
					where shard.domain_uid = job.domain_uid and shard.job_id = job.job_id and not shard.finished)
				and not exists (
					select 1
					from kms_grant
					where kms_grant.domain_uid = job.domain_uid and kms_grant.kind = 'wrap'
						and kms_grant.key_epoch < job.target_epoch and kms_grant.state not in ('RETIRED', 'FAILED', 'GONE') and kms_grant.state <> 'INTENDED')
			)
		order by create_time, domain_uid, job_id
		limit $6 + 0;

		select 
	shard.domain_uid, shard.job_id, shard.shard_index, shard.low, shard.high, shard.cursor,
	shard.again, shard.finished, shard.done, shard.relabelled, shard.failed,
	shard.pace_rows, shard.pace_calls, shard.pace_throttled, shard.pace_time,
	shard.lease_owner, shard.lease_seq, shard.lease_until
		from shard
		where domain_uid = $1 and job_id = $2
		order by shard_index;

		select 1 from domain_grant where domain_uid = $1 and grant_uid = $2;

		select case
			when exists (select 1 from kms_grant where kms_grant.state not in ('RETIRED', 'FAILED', 'GONE') and domain_uid = $1 and key_epoch = $2 and kind = 'wrap' and not worker) then cast($3 as bigint)
			else coalesce((
				select end_time
				from kms_grant
				where (kms_grant.state <> 'FAILED' or kms_grant.kms_grant_id <> '') and domain_uid = $1 and key_epoch = $2 and kind = 'wrap' and not worker
				order by end_time desc
				limit 1), 0)
		end;

		select count(*)
		from (
			select 1
			from domain_grant
			where state in ('CREATING', 'ACTIVE') and expire_time > 0 and expire_time <= $1
			limit $2 + 0
		) as overdue;

		select count(*), count(case when finished then 1 end),
			cast(coalesce(sum(done), 0) as bigint),
			cast(coalesce(sum(relabelled), 0) as bigint),
			cast(coalesce(sum(failed), 0) as bigint)
		from shard
		where domain_uid = $1 and job_id = $2;

		select data_key_id, count(*) over ()
		from data_key
		where domain_uid = $1 and abandoned = true and key_epoch in (
			select key_epoch
			from domain_key
			where domain_uid = $1 and kms_key = $2)
		order by data_key_id
		limit $3 + 0;

		select distinct grant_uid
		from kms_grant
		where state = 'FAILED' and domain_uid = $1 and key_epoch = $2 and grant_uid in (
			select grant_uid
			from domain_grant
			where domain_uid = $1 and domain_grant.state in ('CREATING', 'ACTIVE'))
		order by grant_uid;

		select domain_key.domain_uid, domain.domain_id, domain.state, domain_key.key_epoch, domain_key.state,
			domain_key.retire_time
		from domain_key
		join domain on domain.domain_uid = domain_key.domain_uid
		where domain_key.kms_key = $1
		order by domain_key.domain_uid, domain_key.key_epoch;

		select domain_uid, domain_id, change_job
		from domain
		where change_key = $1 and change_job <> '';

		select domain_uid, domain_id, import_sources
		from domain
		where import_sources <> '[]';

		select domain_uid, job_id, data_key_id, data_key_uid, version, class, message, fail_time, acknowledged
		from job_failure
		where domain_uid = $1 and job_id = $2 and data_key_id > $3
		order by data_key_id
		limit $4 + 0;

		select hash, resource, done, until_time
		from request
		where caller = $1 and method = $2 and request_id = $3;

		select key_epoch, abandoned, count(*)
		from (
			select key_epoch, abandoned
			from data_key
			where domain_uid = $1
			order by data_key_id
			limit $2 + 1
		) as first_rows
		group by key_epoch, abandoned;

		select kind, state, block_reason, count(*)
		from (
			select kind, state, block_reason
			from job
			where job.state in ('RUNNING', 'PAUSED', 'BLOCKED')
			order by create_time, domain_uid, job_id
			limit $1 + 0
		) as open_jobs
		group by kind, state, block_reason
		order by kind, state, block_reason;

		select kms_grant.domain_uid, domain.domain_id,
			count(*), count(case when kms_grant.state = 'INTENDED' then 1 end)
		from kms_grant
		join domain on domain.domain_uid = kms_grant.domain_uid
		where kms_grant.kms_key = $1 and kms_grant.state in ('INTENDED', 'LIVE', 'RETIRING')
		group by kms_grant.domain_uid, domain.domain_id;

		select pace_rows, pace_calls, pace_throttled, pace_time
		from shard
		where domain_uid = $1 and job_id = $2 and pace_time > 0;

		select priority, count(*)
		from job
		where job.state in ('RUNNING', 'PAUSED', 'BLOCKED') and job.state = 'RUNNING' and (job.phase = 'REENCRYPTING' or job.kind = 'VERIFY') and domain_uid <> $1
		group by priority;

		select replica_id, until_time, budgets
		from replica
		where until_time > $1
		order by replica_id;

		select source_key, source_material, new_material, moved
		from job_moved
		where domain_uid = $1 and job_id = $2
		order by source_key, source_material, new_material;

		select state, count(*)
		from (
			select state
			from kms_grant
			where state in ('INTENDED', 'RETIRING')
			order by next_try
			limit $1 + 0
		) as unanswered
		group by state;

		select state, priority
		from job
		where domain_uid = $1 and job_id = $2;

		update data_key
		set abandoned = true, update_time = $5
		where domain_uid = $1 and data_key_id = $2 and data_key_uid = $3 and version = $4;

		update data_key
		set ciphertext = $6, context = $7, key_spec = $8, key_epoch = $9, key_material_id = $10,
			kms_request_id = $11, abandoned = false, version = version + 1, update_time = $12
		where domain_uid = $1 and data_key_id = $2 and data_key_uid = $3 and version = $4 and key_epoch = $5;

		update domain
		set display_name = $3, region = $4, state = $5, inaccessible_since = $6,
			kms_key = $7, kms_key_given = $8, key_epoch = $9, last_epoch = $10,
			change_job = $11, change_key = $12, change_epoch = $13,
			key_accounts = $14, import_sources = $15, labels = $16,
			version = version + 1, update_time = $17
		where domain_uid = $1 and version = $2;

		update domain_grant
		set grantee = $4, operations = $5, constraint_subset = $6, constraint_equals = $7,
			state = $8, expire_time = $9, version = version + 1, update_time = $10
		where domain_uid = $1 and grant_uid = $2 and version = $3;

		update domain_key
		set state = $3, activate_time = $4, replace_time = $5, retire_time = $6
		where domain_uid = $1 and key_epoch = $2;

		update job
		set last_move_time = $3
		where domain_uid = $1 and job_id = $2;

		update job
		set lease_owner = $3, lease_seq = lease_seq + 1, lease_until = $4
		where domain_uid = $1 and job_id = $2 and (lease_until <= $5 or lease_owner = $3);

		update job
		set lease_owner = '', lease_until = 0
		where domain_uid = $1 and job_id = $2 and lease_seq = $3;

		update job
		set lease_until = $4
		where domain_uid = $1 and job_id = $2 and lease_seq = $3 and lease_until > 0;

		update job
		set phase = $5, state = $6,
			block_reason = $7, block_side = $8, block_message = $9, block_since = $10, block_next_probe = $11,
			source_epoch = $12, target_epoch = $13, source_key = $14, target_key = $15, target_given = $16,
			reason = $17, fail_reason = $18, fail_message = $19, wait_message = $20, wait_until = $21,
			prepare_time = $22, grant_time = $23, switch_time = $24,
			close_time = $25, retire_time = $26, list_time = $27,
			grants_retired = $28, estimated_rows = $29, verified_rows = $30, end_time = $31,
			accept_mismatch = $33, undo = $34, priority = $35,
			verify_cursor = $36, verify_seen = $37, verify_rows = $38,
			version = version + 1, update_time = $32
		where domain_uid = $1 and job_id = $2 and version = $3 and lease_seq = $4;

		update job_failure
		set acknowledged = true
		where domain_uid = $1 and job_id = $2 and data_key_id = $3;

		update kms_grant
		set kms_grant_id = $6, state = $7, intend_time = $8, live_time = $9, end_time = $10,
			next_try = $11, miss_time = $12
		where domain_uid = $1 and grant_uid = $2 and key_epoch = $3 and kind = $4 and attempt = $5;

		update listed_key
		set list_time = $1
		where list_time <= $2 and kms_key in (
			select kms_key
			from listed_key
			where list_time <= $2
			order by list_time, kms_key
			limit $3 + 0)
		returning kms_key;

		update periodic
		set take_time = $3
		where name = $1 and owner = $2;

		update shard
		set again = $4, lease_owner = $5, lease_seq = $6, lease_until = $7
		where domain_uid = $1 and job_id = $2 and shard_index = $3
			and lease_seq = $8 and lease_until = $9 and not finished;

		update shard
		set cursor = $5, again = $6, finished = $7, done = $8, relabelled = $9, failed = $10,
			lease_owner = $11, lease_until = $12,
			pace_rows = $13, pace_calls = $14, pace_throttled = $15, pace_time = $16
		where domain_uid = $1 and job_id = $2 and shard_index = $3 and lease_seq = $4;

		update shard
		set lease_until = $5
		where domain_uid = $1 and job_id = $2 and shard_index = $3 and lease_seq = $4 and lease_until > 0;

		with workers as (
			select job.domain_uid, job.job_id, job.create_time,
				case when job.priority = 'HIGH' then 1000000 else 4000000 end as cost,
				count(case when shard.lease_until > $1 then 1 end) as live,
				count(case when shard.lease_until <= $1 and not shard.finished then 1 end) as free,
				max(shard.pace_time) as worked
			from job
			cross join shard
			where job.state in ('RUNNING', 'PAUSED', 'BLOCKED') and job.state = 'RUNNING' and (job.phase = 'REENCRYPTING' or job.kind = 'VERIFY')
				and shard.domain_uid = job.domain_uid and shard.job_id = job.job_id
			group by job.domain_uid, job.job_id, job.create_time, job.priority
		), claims as (
			select domain_uid, job_id, create_time, free, worked,
				cost * live as taken,
				case
					when live > 0 then cost * (live + 1)
					when worked < $1 then cost * cast($2 as bigint) / ($2 + $1 - worked)
					else cost
				end as claim
			from workers
		)
		select 
	shard.domain_uid, shard.job_id, shard.shard_index, shard.low, shard.high, shard.cursor,
	shard.again, shard.finished, shard.done, shard.relabelled, shard.failed,
	shard.pace_rows, shard.pace_calls, shard.pace_throttled, shard.pace_time,
	shard.lease_owner, shard.lease_seq, shard.lease_until
		from (
			select domain_uid, job_id, create_time, worked, claim
			from claims
			where free > 0
			order by claim, worked, create_time, domain_uid, job_id
			limit $3 + 0
		) as best
		cross join shard
		where shard.domain_uid = best.domain_uid and shard.job_id = best.job_id and shard.lease_until <= $1 and not shard.finished
		order by best.claim, best.worked, best.create_time,
			best.domain_uid, best.job_id, shard.lease_until, shard.shard_index
		limit $3 + 0;

		with workers as (
			select job.domain_uid, job.job_id, job.create_time,
				case when job.priority = 'HIGH' then 1000000 else 4000000 end as cost,
				count(case when shard.lease_until > $1 then 1 end) as live,
				count(case when shard.lease_until <= $1 and not shard.finished then 1 end) as free,
				max(shard.pace_time) as worked
			from job
			cross join shard
			where job.state in ('RUNNING', 'PAUSED', 'BLOCKED') and job.state = 'RUNNING' and (job.phase = 'REENCRYPTING' or job.kind = 'VERIFY')
				and shard.domain_uid = job.domain_uid and shard.job_id = job.job_id
			group by job.domain_uid, job.job_id, job.create_time, job.priority
		), claims as (
			select domain_uid, job_id, create_time, free, worked,
				cost * live as taken,
				case
					when live > 0 then cost * (live + 1)
					when worked < $1 then cost * cast($2 as bigint) / ($2 + $1 - worked)
					else cost
				end as claim
			from workers
		)
		select 1
		from claims as mine, claims as other
		where mine.domain_uid = $3 and mine.job_id = $4 and other.free > 0 and other.claim < mine.taken
		limit 1;

	select 
	domain_uid, data_key_id, data_key_uid, ciphertext, context, key_spec, key_epoch,
	key_material_id, kms_request_id, abandoned, version, create_time, update_time
	from data_key
	where domain_uid = $1 and data_key_id > $2 and data_key_id <= $3
		and not exists (
			select 1
			from job_failure
			where job_failure.domain_uid = data_key.domain_uid
				and job_failure.job_id = $4
				and job_failure.data_key_id = data_key.data_key_id
				and job_failure.data_key_uid = data_key.data_key_uid
				and job_failure.version = data_key.version)
			and key_epoch < $5 and not abandoned
		order by data_key_id
		limit $6 + 0;

	select 1 from data_key where domain_uid = $1 and data_key_id = $2;
select 1 from domain where domain_uid = $1;
select 1 from job where domain_uid = $1 and job_id = $2;
