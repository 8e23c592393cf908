(* What are the derivatives and limits of phi, Phi and Q? *)

From Coq Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
Require Import Gaussian Formulas.
Open Scope R_scope.

Lemma sqrt_2_positive : 0 < sqrt 2.
Proof. apply sqrt_lt_R0. lra. Qed.

Lemma sqrt_2PI_positive : 0 < sqrt (2 * PI).
Proof. apply sqrt_lt_R0. pose proof PI_RGT_0. lra. Qed.

Lemma phi_positive : forall x : R, 0 < phi x.
Proof. intros x. apply Rdiv_lt_0_compat; [apply exp_pos | apply sqrt_2PI_positive]. Qed.

Lemma phi_even : forall x : R, phi (- x) = phi x.
Proof. intros x. unfold phi. replace ((- x) ^ 2) with (x ^ 2) by ring. reflexivity. Qed.

Lemma phi_0 : phi 0 = 1 / sqrt (2 * PI).
Proof. unfold phi. replace (- 0 ^ 2 / 2) with 0 by field. rewrite exp_0. reflexivity. Qed.

Lemma phi_derive : forall x : R, is_derive phi x (- x * phi x).
Proof.
  intros x. unfold phi. pose proof sqrt_2PI_positive. auto_derive; [lra |].
  change (- (x * (x * 1)) * / 2) with (- x ^ 2 / 2). field. lra.
Qed.

Lemma Phi_is_half : forall x : R, Phi x = (1 + erf (x / sqrt 2)) / 2.
Proof.
  intros x. unfold Phi, erfc. replace (- x / sqrt 2) with (- (x / sqrt 2)) by (unfold Rdiv; ring).
  rewrite erf_odd. field.
Qed.

Lemma Phi_Q : forall x : R, Phi x = 1 - Q x.
Proof. intros x. rewrite Phi_is_half. unfold Q, erfc. field. Qed.

Lemma Phi_opp : forall x : R, Phi (- x) = Q x.
Proof. intros x. unfold Phi, Q. rewrite Ropp_involutive. reflexivity. Qed.

Lemma Q_opp : forall x : R, Q (- x) = Phi x.
Proof. intros x. rewrite <- Phi_opp, Ropp_involutive. reflexivity. Qed.

Lemma Phi_derive : forall x : R, is_derive Phi x (phi x).
Proof.
  intros x. apply is_derive_ext with (fun y => (1 + erf (y / sqrt 2)) / 2).
  { intros y. symmetry. apply Phi_is_half. }
  pose proof sqrt_2_positive. pose proof PI_RGT_0.
  assert (0 < sqrt PI) by (apply sqrt_lt_R0; lra).
  evar_last.
  - apply (is_derive_ext (fun y => / 2 + / 2 * erf (y / sqrt 2))); [intros y; real_equation; field |].
    apply (is_derive_plus (fun _ => / 2) (fun y => / 2 * erf (y / sqrt 2))); [apply @is_derive_const |].
    apply (is_derive_scal (fun y => erf (y / sqrt 2)) x (/ 2)).
    apply (is_derive_comp erf (fun y => y / sqrt 2)); [apply erf_derive |].
    apply (is_derive_scal_l (fun y => y) x 1 (/ sqrt 2)), @is_derive_id.
  - unfold plus, scal, zero; simpl. unfold mult; simpl. unfold phi. rewrite sqrt_mult by lra.
    replace (- (x / sqrt 2 * (x / sqrt 2 * 1))) with (- x ^ 2 / 2).
    + real_equation. unfold one; simpl. field. lra.
    + rewrite <- (sqrt_sqrt 2) at 1 by lra. simpl. field. lra.
Qed.

Lemma Q_derive : forall x : R, is_derive Q x (- phi x).
Proof.
  intros x. apply is_derive_ext with (fun y => 1 + - Phi y).
  { intros y. real_equation. rewrite Phi_Q. ring. }
  evar_last.
  - apply (is_derive_plus (fun _ => 1) (fun y => - Phi y)); [apply @is_derive_const |].
    apply (is_derive_opp Phi x (phi x)), Phi_derive.
  - unfold plus, zero, opp; simpl. ring.
Qed.

Lemma Phi_limit : is_lim Phi p_infty 1.
Proof.
  apply is_lim_ext with (fun y => / 2 + / 2 * erf (y / sqrt 2)).
  { intros y. rewrite Phi_is_half. field. }
  replace 1 with (/ 2 + / 2 * 1) by field.
  apply (is_lim_plus' (fun _ => / 2) (fun y => / 2 * erf (y / sqrt 2))); [apply is_lim_const |].
  apply (is_lim_scal_l (fun y => erf (y / sqrt 2)) (/ 2) p_infty 1).
  apply (is_lim_comp erf (fun y => y / sqrt 2) p_infty 1 p_infty); [apply erf_limit | | exists 0; discriminate].
  pose proof sqrt_2_positive as P.
  replace p_infty with (Rbar_mult p_infty (/ sqrt 2)) at 2.
  - apply (is_lim_scal_r (fun y => y) (/ sqrt 2) p_infty p_infty), is_lim_id.
  - apply Rbar_mult_p_infty_pos || (apply is_Rbar_mult_unique; apply is_Rbar_mult_p_infty_pos; simpl).
    apply Rinv_0_lt_compat, P.
Qed.

Lemma Q_limit : is_lim Q p_infty 0.
Proof.
  apply is_lim_ext with (fun y => 1 - Phi y).
  { intros y. rewrite Phi_Q. ring. }
  replace 0 with (1 - 1) by ring.
  apply (is_lim_minus' (fun _ => 1) Phi); [apply is_lim_const | apply Phi_limit].
Qed.

Lemma mirrored_limit : forall (f : R -> R) (l : Rbar), is_lim (fun y => f (- y)) p_infty l -> is_lim f m_infty l.
Proof.
  intros f l H. apply is_lim_ext with (fun y => f (- - y)); [intros y; f_equal; ring |].
  apply (is_lim_comp (fun y => f (- y)) Ropp m_infty l p_infty).
  - exact H.
  - apply (is_lim_opp (fun y => y) m_infty m_infty), is_lim_id.
  - exists 0. discriminate.
Qed.

(* Powers of z up to the third, times the density, vanish far out. *)
Lemma far_out : forall (z : R) (k : nat), (k <= 3)%nat -> 1 <= z -> 0 <= z ^ k * phi z <= 16 / z.
Proof.
  intros z k K H. split.
  - apply Rmult_le_pos; [apply pow_le; lra | apply Rlt_le, phi_positive].
  - assert (E : z ^ 4 / 16 <= exp (z ^ 2 / 2)).
    { replace (z ^ 2 / 2) with (z ^ 2 / 4 + z ^ 2 / 4) by field. rewrite exp_plus.
      assert (1 + z ^ 2 / 4 <= exp (z ^ 2 / 4)).
      { destruct (Req_dec (z ^ 2 / 4) 0); [nra | left; apply exp_ineq1; assumption]. }
      assert (0 <= z ^ 2) by nra. replace (z ^ 4 / 16) with (z ^ 2 / 4 * (z ^ 2 / 4)) by field. nra. }
    assert (P : phi z <= 16 / z ^ 4).
    { unfold phi. replace (- z ^ 2 / 2) with (- (z ^ 2 / 2)) by field. rewrite exp_Ropp.
      assert (0 < z ^ 4) by (apply pow_lt; lra).
      apply Rle_trans with (/ exp (z ^ 2 / 2)).
      - pose proof (exp_pos (z ^ 2 / 2)) as X. apply Rinv_0_lt_compat in X.
        assert (1 <= sqrt (2 * PI)).
        { rewrite <- sqrt_1. apply sqrt_le_1_alt. pose proof PI2_1. unfold PI2 in *. lra. }
        apply Rmult_le_reg_r with (sqrt (2 * PI)); [lra |]. unfold Rdiv.
        rewrite Rmult_assoc, Rinv_l by lra. nra.
      - replace (16 / z ^ 4) with (/ (z ^ 4 / 16)) by (field; lra).
        apply Rinv_le_contravar; [lra | exact E]. }
    apply Rle_trans with (z ^ 3 * phi z).
    + apply Rmult_le_compat_r; [apply Rlt_le, phi_positive | apply Rle_pow; [lra | lia]].
    + replace (16 / z) with (z ^ 3 * (16 / z ^ 4)) by (field; lra).
      apply Rmult_le_compat_l; [apply pow_le; lra | exact P].
Qed.

Lemma inverse_limit : is_lim (fun z => 16 / z) p_infty 0.
Proof.
  replace (Finite 0) with (Rbar_mult 16 0) by (simpl; f_equal; ring).
  apply (is_lim_scal_l (fun z => / z) 16 p_infty 0).
  apply (is_lim_inv (fun z => z) p_infty p_infty); [apply is_lim_id | discriminate].
Qed.

Lemma power_limit : forall k : nat, (k <= 3)%nat -> is_lim (fun z => z ^ k * phi z) p_infty 0.
Proof.
  intros k K. apply is_lim_le_le_loc with (fun _ => 0) (fun z => 16 / z).
  - exists 1. intros z H. apply far_out; [exact K | lra].
  - apply is_lim_const.
  - apply inverse_limit.
Qed.

Lemma limit_value : forall (f : R -> R) (x : Rbar) (l l' : R), is_lim f x l -> l = l' -> is_lim f x l'.
Proof. intros f x l l' H <-. exact H. Qed.
