(* What is the mean of a function of a standard normal number? An improper integral, by antiderivatives. *)

From Coq Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
Require Import Gaussian Formulas Normal.
Open Scope R_scope.

(* m is the mean of g(z), z ~ N(0, 1): the integral of g phi over the whole line converges to m. *)
Definition mean (g : R -> R) (m : R) : Prop :=
  is_RInt_gen (fun z => g z * phi z) (Rbar_locally m_infty) (Rbar_locally p_infty) m.

Section Antiderivative.
Variables f F : R -> R.
Hypothesis derivative : forall z, is_derive F z (f z).
Hypothesis continuity : forall z, continuous f z.

Lemma between : forall p q : R, is_RInt f p q (F q - F p).
Proof. intros p q. apply (is_RInt_derive F f); intros; [apply derivative | apply continuity]. Qed.

Lemma right_of : forall p B : R, is_lim F p_infty B -> is_RInt_gen f (at_point p) (Rbar_locally p_infty) (B - F p).
Proof.
  intros p B limit P HP.
  assert (L : is_lim (fun q => F q - F p) p_infty (B - F p)).
  { apply (is_lim_minus' F (fun _ => F p)); [exact limit | apply is_lim_const]. }
  apply (Filter_prod _ _ _ (fun x => x = p) (fun q => P (F q - F p))).
  - unfold at_point. reflexivity.
  - apply (L P). exact HP.
  - intros x q -> HQ. exists (F q - F p). split; [apply between | exact HQ].
Qed.

Lemma left_of : forall p A : R, is_lim F m_infty A -> is_RInt_gen f (Rbar_locally m_infty) (at_point p) (F p - A).
Proof.
  intros p A limit P HP.
  assert (L : is_lim (fun q => F p - F q) m_infty (F p - A)).
  { apply (is_lim_minus' (fun _ => F p) F); [apply is_lim_const | exact limit]. }
  apply (Filter_prod _ _ _ (fun q => P (F p - F q)) (fun x => x = p)).
  - apply (L P). exact HP.
  - unfold at_point. reflexivity.
  - intros q x HQ ->. exists (F p - F q). split; [apply between | exact HQ].
Qed.
End Antiderivative.

(* Integrands may be changed beyond the border. *)
Lemma right_ext : forall (f g : R -> R) (p l : R), (forall z, p < z -> f z = g z) ->
  is_RInt_gen f (at_point p) (Rbar_locally p_infty) l -> is_RInt_gen g (at_point p) (Rbar_locally p_infty) l.
Proof.
  intros f g p l E. apply (is_RInt_gen_ext f g l).
  apply (Filter_prod _ _ _ (fun x => x = p) (fun q => p < q)).
  - unfold at_point. reflexivity.
  - exists p. intros q H. exact H.
  - intros x q -> H z. simpl. rewrite Rmin_left, Rmax_right by lra. intros [A B]. apply E, A.
Qed.

Lemma left_ext : forall (f g : R -> R) (p l : R), (forall z, z < p -> f z = g z) ->
  is_RInt_gen f (Rbar_locally m_infty) (at_point p) l -> is_RInt_gen g (Rbar_locally m_infty) (at_point p) l.
Proof.
  intros f g p l E. apply (is_RInt_gen_ext f g l).
  apply (Filter_prod _ _ _ (fun q => q < p) (fun x => x = p)).
  - exists p. intros q H. exact H.
  - unfold at_point. reflexivity.
  - intros q x H -> z. simpl. rewrite Rmin_left, Rmax_right by lra. intros [A B]. apply E, B.
Qed.

Lemma mean_split : forall (g : R -> R) (p l r : R),
  is_RInt_gen (fun z => g z * phi z) (Rbar_locally m_infty) (at_point p) l ->
  is_RInt_gen (fun z => g z * phi z) (at_point p) (Rbar_locally p_infty) r -> mean g (l + r).
Proof. intros g p l r L R0. exact (is_RInt_gen_Chasles _ p l r L R0). Qed.

Lemma mean_unique : forall (g : R -> R) (m n : R), mean g m -> mean g n -> m = n.
Proof.
  intros g m n M N. rewrite <- (is_RInt_gen_unique _ _ M). apply is_RInt_gen_unique, N.
Qed.

Lemma mean_ext : forall (g h : R -> R) (m : R), (forall z, g z = h z) -> mean g m -> mean h m.
Proof.
  intros g h m E. apply (is_RInt_gen_ext (fun z => g z * phi z) (fun z => h z * phi z) m).
  apply filter_forall. intros ab z _. rewrite E. reflexivity.
Qed.

Lemma mean_plus : forall (g h : R -> R) (m n : R), mean g m -> mean h n -> mean (fun z => g z + h z) (m + n).
Proof.
  intros g h m n M N. unfold mean in *.
  apply is_RInt_gen_ext with (fun z => plus (g z * phi z) (h z * phi z)).
  - apply filter_forall. intros ab z _. unfold plus; simpl. real_equation. ring.
  - apply (is_RInt_gen_plus _ _ m n M N).
Qed.

Lemma mean_scale : forall (g : R -> R) (k m : R), mean g m -> mean (fun z => k * g z) (k * m).
Proof.
  intros g k m M. unfold mean in *.
  apply is_RInt_gen_ext with (fun z => scal k (g z * phi z)).
  - apply filter_forall. intros ab z _. unfold scal; simpl. unfold mult; simpl. real_equation. ring.
  - apply (is_RInt_gen_scal _ k m M).
Qed.

Lemma mean_of_nonnegative : forall (g : R -> R) (m : R), (forall z, 0 <= g z) -> mean g m -> 0 <= m.
Proof.
  intros g m P M. destruct (Rle_lt_dec 0 m) as [H | H]; [exact H | exfalso].
  assert (e : 0 < - m) by lra.
  destruct (M (fun x => x < 0)) as [U V HU HV HP].
  - exists (mkposreal (- m) e). intros y Y. apply Rabs_lt_between in Y. unfold minus, plus, opp in Y; simpl in Y. lra.
  - destruct HU as [u HU], HV as [v HV].
    destruct (HP (Rmin u 0 - 1) (Rmax v 0 + 1)) as [y [I Y]].
    + apply HU. pose proof (Rmin_l u 0). lra.
    + apply HV. pose proof (Rmax_l v 0). lra.
    + assert (0 <= y); [| lra]. simpl in I.
      apply (is_RInt_ge_0 (fun z => g z * phi z) (Rmin u 0 - 1) (Rmax v 0 + 1) y).
      * pose proof (Rmin_r u 0). pose proof (Rmax_r v 0). lra.
      * exact I.
      * intros z _. apply Rmult_le_pos; [apply P | apply Rlt_le, phi_positive].
Qed.

Lemma mean_monotone : forall (g h : R -> R) (m n : R), (forall z, g z <= h z) -> mean g m -> mean h n -> m <= n.
Proof.
  intros g h m n L M N. enough (0 <= n + - 1 * m) by lra.
  apply (mean_of_nonnegative (fun z => h z + - 1 * g z)).
  - intros z. specialize (L z). lra.
  - apply mean_plus; [exact N | apply mean_scale, M].
Qed.

(* Polynomials of z up to the third degree, times the density. *)
Definition cubic (c0 c1 c2 c3 z : R) : R := c0 + c1 * z + c2 * z ^ 2 + c3 * z ^ 3.
Definition cubic_integral (c0 c1 c2 c3 z : R) : R := (c0 + c2) * Phi z - (c1 + 2 * c3 + c2 * z + c3 * z ^ 2) * phi z.

Section Cubic.
Variables c0 c1 c2 c3 : R.
Let f (z : R) := cubic c0 c1 c2 c3 z * phi z.
Let F := cubic_integral c0 c1 c2 c3.

Lemma phi_continuous : forall z : R, continuous phi z.
Proof. intros z. apply smooth. eexists. apply phi_derive. Qed.

Lemma cubic_derive : forall z, is_derive F z (f z).
Proof.
  intros z. unfold F, f, cubic_integral, cubic. evar_last.
  - apply (is_derive_minus (fun z => (c0 + c2) * Phi z) (fun z => (c1 + 2 * c3 + c2 * z + c3 * z ^ 2) * phi z)).
    + apply (is_derive_scal Phi z (c0 + c2)), Phi_derive.
    + apply (is_derive_mult (fun z => c1 + 2 * c3 + c2 * z + c3 * z ^ 2) phi z (c2 + 2 * c3 * z) (- z * phi z)).
      * auto_derive; [exact I | ring].
      * apply phi_derive.
      * intros. apply Rmult_comm.
  - unfold minus, plus, opp, mult; simpl. real_equation. ring.
Qed.

Lemma cubic_continuous : forall z, continuous f z.
Proof.
  intros z. unfold f, cubic. apply (continuous_mult (fun z => c0 + c1 * z + c2 * z ^ 2 + c3 * z ^ 3) phi).
  - apply smooth. auto_derive. exact I.
  - apply phi_continuous.
Qed.

Lemma cubic_limit : is_lim F p_infty (c0 + c2).
Proof.
  unfold F, cubic_integral.
  apply is_lim_ext with (fun z => (c0 + c2) * Phi z - ((c1 + 2 * c3) * (z ^ 0 * phi z) + c2 * (z ^ 1 * phi z)
    + c3 * (z ^ 2 * phi z))); [intros z; ring |].
  apply limit_value with ((c0 + c2) * 1 - ((c1 + 2 * c3) * 0 + c2 * 0 + c3 * 0)); [| ring].
  apply (is_lim_minus' (fun z => (c0 + c2) * Phi z)).
  - apply (is_lim_scal_l Phi (c0 + c2) p_infty 1), Phi_limit.
  - apply (is_lim_plus' (fun z => (c1 + 2 * c3) * (z ^ 0 * phi z) + c2 * (z ^ 1 * phi z))).
    + apply (is_lim_plus' (fun z => (c1 + 2 * c3) * (z ^ 0 * phi z))).
      * apply (is_lim_scal_l (fun z => z ^ 0 * phi z) (c1 + 2 * c3) p_infty 0), power_limit. lia.
      * apply (is_lim_scal_l (fun z => z ^ 1 * phi z) c2 p_infty 0), power_limit. lia.
    + apply (is_lim_scal_l (fun z => z ^ 2 * phi z) c3 p_infty 0), power_limit. lia.
Qed.

Lemma cubic_limit_left : is_lim F m_infty 0.
Proof.
  apply mirrored_limit. unfold F, cubic_integral.
  apply is_lim_ext with (fun z => (c0 + c2) * Q z - ((c1 + 2 * c3) * (z ^ 0 * phi z) + - c2 * (z ^ 1 * phi z)
    + c3 * (z ^ 2 * phi z))); [intros z; rewrite Phi_opp, phi_even; ring |].
  apply limit_value with ((c0 + c2) * 0 - ((c1 + 2 * c3) * 0 + - c2 * 0 + c3 * 0)); [| ring].
  apply (is_lim_minus' (fun z => (c0 + c2) * Q z)).
  - apply (is_lim_scal_l Q (c0 + c2) p_infty 0), Q_limit.
  - apply (is_lim_plus' (fun z => (c1 + 2 * c3) * (z ^ 0 * phi z) + - c2 * (z ^ 1 * phi z))).
    + apply (is_lim_plus' (fun z => (c1 + 2 * c3) * (z ^ 0 * phi z))).
      * apply (is_lim_scal_l (fun z => z ^ 0 * phi z) (c1 + 2 * c3) p_infty 0), power_limit. lia.
      * apply (is_lim_scal_l (fun z => z ^ 1 * phi z) (- c2) p_infty 0), power_limit. lia.
    + apply (is_lim_scal_l (fun z => z ^ 2 * phi z) c3 p_infty 0), power_limit. lia.
Qed.

Lemma cubic_right : forall p : R, is_RInt_gen f (at_point p) (Rbar_locally p_infty) (c0 + c2 - F p).
Proof. intros p. apply right_of; [apply cubic_derive | apply cubic_continuous | apply cubic_limit]. Qed.

Lemma cubic_left : forall p : R, is_RInt_gen f (Rbar_locally m_infty) (at_point p) (F p).
Proof.
  intros p. replace (F p) with (F p - 0) by ring.
  apply left_of; [apply cubic_derive | apply cubic_continuous | apply cubic_limit_left].
Qed.

Lemma cubic_between : forall p q : R, is_RInt f p q (F q - F p).
Proof. intros p q. apply between; [apply cubic_derive | apply cubic_continuous]. Qed.

Lemma cubic_mean : mean (cubic c0 c1 c2 c3) (c0 + c2).
Proof.
  replace (c0 + c2) with (F 0 + (c0 + c2 - F 0)) by ring.
  apply mean_split with 0; [apply cubic_left | apply cubic_right].
Qed.
End Cubic.
