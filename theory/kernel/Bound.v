(* Does the bound on the noise solve its inequality? The algebra of B and Bu, in both directions. *)

From Coq Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
Require Import Gaussian Formulas.
Open Scope R_scope.

(* Noise c leaves the mean, margin - c bias at least, tau Lipschitz constants c lipschitz above 0. *)
Theorem tolerable_noise_is_the_solution : forall c margin bias lipschitz tau : R,
  0 <= bias -> 0 < lipschitz -> 0 < tau ->
  (c <= tolerable_noise margin bias lipschitz tau <-> tau * (c * lipschitz) <= margin - c * bias).
Proof.
  intros c margin bias lipschitz tau B L T. unfold tolerable_noise.
  assert (P : 0 < tau * lipschitz) by (apply Rmult_lt_0_compat; assumption).
  split; intros H.
  - apply Rmult_le_compat_r with (r := bias + tau * lipschitz) in H; [| lra].
    unfold Rdiv in H. rewrite Rmult_assoc, Rinv_l in H by lra. lra.
  - apply Rmult_le_reg_r with (bias + tau * lipschitz); [lra |].
    unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
Qed.

Lemma concentration_squared : forall delta : R, 0 < delta <= 1 ->
  0 <= concentration delta /\ concentration delta ^ 2 = - 2 * ln delta.
Proof.
  intros delta D. unfold concentration. split; [apply sqrt_pos |].
  assert (E : ln (1 / delta) = - ln delta) by (unfold Rdiv; rewrite Rmult_1_l; apply ln_Rinv; lra).
  assert (ln delta <= 0).
  { rewrite <- ln_1. destruct (Req_dec delta 1) as [-> | N]; [lra | left; apply ln_increasing; lra]. }
  rewrite pow2_sqrt; rewrite E; lra.
Qed.

(* The bound is met with equality at tau Lipschitz constants, by less above, and by more below. *)
Theorem failure_bound_is_delta_at_tau : forall delta lipschitz : R, 0 < delta <= 1 -> 0 < lipschitz ->
  failure_bound (concentration delta * lipschitz) lipschitz = delta.
Proof.
  intros delta lipschitz D L. unfold failure_bound.
  replace (concentration delta * lipschitz / lipschitz) with (concentration delta) by (field; lra).
  destruct (concentration_squared delta D) as [_ E]. rewrite E.
  replace (- (- 2 * ln delta) / 2) with (ln delta) by field. apply exp_ln. lra.
Qed.

Theorem failure_bound_is_at_most_delta : forall delta mean lipschitz : R,
  0 < delta <= 1 -> 0 < lipschitz -> 0 <= mean ->
  (failure_bound mean lipschitz <= delta <-> concentration delta * lipschitz <= mean).
Proof.
  intros delta mean lipschitz D L M. destruct (concentration_squared delta D) as [P E].
  set (tau := concentration delta) in *.
  assert (R0 : 0 <= mean / lipschitz) by (apply Rmult_le_pos; [lra | apply Rlt_le, Rinv_0_lt_compat, L]).
  assert (S : failure_bound mean lipschitz <= delta <-> tau ^ 2 <= (mean / lipschitz) ^ 2).
  { unfold failure_bound. rewrite <- (exp_ln delta) by lra. split; intros H.
    - destruct (Rle_lt_dec (tau ^ 2) ((mean / lipschitz) ^ 2)) as [K | K]; [exact K | exfalso].
      assert (exp (ln delta) < exp (- (mean / lipschitz) ^ 2 / 2)) by (apply exp_increasing; lra). lra.
    - apply exp_monotone. lra. }
  assert (X : mean = mean / lipschitz * lipschitz) by (field; lra).
  rewrite S. split; intros H.
  - rewrite X. apply Rmult_le_compat_r; [lra |]. nra.
  - assert (tau <= mean / lipschitz); [| nra].
    apply Rmult_le_reg_r with lipschitz; [exact L |]. rewrite <- X. exact H.
Qed.

(* B as a whole, after concentration: noise up to the bound keeps the probability of failure at delta. *)
Theorem noise_up_to_the_bound_fails_at_most_delta : forall delta c margin bias lipschitz : R,
  0 < delta < 1 -> 0 < c -> 0 < margin -> 0 <= bias -> 0 < lipschitz ->
  c <= tolerable_noise margin bias lipschitz (concentration delta) ->
  0 < margin - c * bias /\ failure_bound (margin - c * bias) (c * lipschitz) <= delta.
Proof.
  intros delta c margin bias lipschitz D C M B L H.
  assert (T : 0 < concentration delta).
  { unfold concentration. apply sqrt_lt_R0. assert (0 < ln (1 / delta)); [| lra].
    rewrite <- ln_1. apply ln_increasing; [lra |]. apply Rmult_lt_reg_r with delta; [lra |].
    replace (1 / delta * delta) with 1 by (field; lra). lra. }
  apply tolerable_noise_is_the_solution in H; [| assumption..].
  assert (0 < c * lipschitz) by (apply Rmult_lt_0_compat; assumption).
  assert (0 < concentration delta * (c * lipschitz)) by (apply Rmult_lt_0_compat; assumption).
  split; [lra |]. apply failure_bound_is_at_most_delta; lra.
Qed.

(* Noise above the bound: the guarantee that B gives is above delta. *)
Theorem noise_above_the_bound_is_not_guaranteed : forall delta c margin bias lipschitz : R,
  0 < delta < 1 -> 0 < c -> 0 <= bias -> 0 < lipschitz -> 0 <= margin - c * bias ->
  tolerable_noise margin bias lipschitz (concentration delta) < c ->
  delta < failure_bound (margin - c * bias) (c * lipschitz).
Proof.
  intros delta c margin bias lipschitz D C B L M H.
  assert (0 < concentration delta).
  { unfold concentration. apply sqrt_lt_R0. assert (0 < ln (1 / delta)); [| lra].
    rewrite <- ln_1. apply ln_increasing; [lra |]. apply Rmult_lt_reg_r with delta; [lra |].
    replace (1 / delta * delta) with 1 by (field; lra). lra. }
  assert (0 < c * lipschitz) by (apply Rmult_lt_0_compat; assumption).
  apply Rnot_le_lt. intros K. apply failure_bound_is_at_most_delta in K; [| lra..].
  apply tolerable_noise_is_the_solution in K; lra.
Qed.

Theorem tolerable_noise_falls : forall margin bias less_bias lipschitz less_lipschitz tau less_tau : R,
  0 <= margin -> 0 <= less_bias <= bias -> 0 < less_lipschitz <= lipschitz -> 0 < less_tau <= tau ->
  tolerable_noise margin bias lipschitz tau <= tolerable_noise margin less_bias less_lipschitz less_tau.
Proof.
  intros margin bias less_bias lipschitz less_lipschitz tau less_tau M B L T. unfold tolerable_noise.
  apply Rmult_le_compat_l; [exact M |]. apply Rinv_le_contravar; [nra |].
  apply Rplus_le_compat; [lra |]. apply Rmult_le_compat; lra.
Qed.

(* Bu: every event may fail with probability delta/events, so that all together fail with delta. *)
Theorem events_share_delta : forall delta analog tokens one_label lipschitz : R,
  let events := tail_events analog tokens one_label in
  0 < delta <= events -> 0 < lipschitz ->
  events * failure_bound (concentration (delta / events) * lipschitz) lipschitz = delta.
Proof.
  intros delta analog tokens one_label lipschitz events D L.
  rewrite failure_bound_is_delta_at_tau; [field; lra | | exact L]. split.
  - apply Rdiv_lt_0_compat; lra.
  - apply Rmult_le_reg_r with events; [lra |]. replace (delta / events * events) with delta by (field; lra). lra.
Qed.

Theorem events_of_the_setting : forall analog d : R, tail_events analog (d + 2) 4 = 2 * analog * d.
Proof. intros analog d. unfold tail_events. ring. Qed.
